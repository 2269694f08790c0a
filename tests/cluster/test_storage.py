"""Jobs whose storage cannot be used are refused before their folder is made."""

from pathlib import Path

import pytest

from renege_ray.__main__ import main
from renege_ray.errors import UserError
from tests.object_store import Store, store

__all__ = ["store"]


@pytest.mark.parametrize("job", ["train-global", "tune-prompts", "evaluate", "sweep"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_wrong_bucket(job: str, more: tuple[str, ...], store: Store, tmp_path: Path) -> None:
    flags = ["--cluster.storage-path", store.uri("no-bucket/x"), "--output-dir", str(tmp_path / "run"), *more]
    with pytest.raises(UserError, match=r"^cluster.storage_path: s3://no-bucket/x.*; check its name"):
        main([job, *flags])
    assert not (tmp_path / "run").exists()
