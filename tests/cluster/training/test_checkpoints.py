"""Where checkpoints are, and a resumed run that does not find its own."""

from pathlib import Path

import pytest

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.training.checkpoints import (
    CheckpointStore,
    check_goes_on,
    check_rows_go_on,
    checkpoint_root,
    shared_folder,
)
from renege_ray.errors import UserError


def test_the_place_in_storage_is_the_run_s_not_the_path_s(tmp_path: Path) -> None:
    real, link, storage = tmp_path / "real" / "run", tmp_path / "link", str(tmp_path / "store")
    real.mkdir(parents=True)
    link.symlink_to(tmp_path / "real")
    place = checkpoint_root(link / "run", storage)
    assert place.startswith(f"{storage}/run-")
    assert checkpoint_root(real, storage) == place
    (tmp_path / "real").rename(tmp_path / "moved")
    assert shared_folder(tmp_path / "moved" / "run", f"{storage}/") == place
    (tmp_path / "moved" / "other").mkdir()
    assert checkpoint_root(tmp_path / "moved" / "other", storage) != place


@pytest.mark.parametrize("storage", [None, "store"])
def test_a_begun_run_without_its_checkpoints_says_so(tmp_path: Path, storage: str | None) -> None:
    storage = storage and str(tmp_path / storage)
    check_goes_on(tmp_path, storage)  # killed before its first step: there is nothing to miss
    journal.append(tmp_path / journal.METRICS, {"step": 0, "time": 0, "metrics": {"a": 1.0}})
    check_goes_on(tmp_path, storage)
    journal.append(tmp_path / journal.METRICS, {"step": 7, "time": 0, "metrics": {"a": 1.0}})
    with pytest.raises(UserError, match=r"had come to step 7, but .* holds no checkpoint .*--preset"):
        check_goes_on(tmp_path, storage)
    torn = Path(CheckpointStore(checkpoint_root(tmp_path, storage)).root) / "attempt-001" / "step-000005"
    torn.mkdir(parents=True)
    (torn / "state.json").write_text("{}")
    with pytest.raises(UserError, match="holds no checkpoint"):
        check_goes_on(tmp_path, storage)
    (torn / "state.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="format 1"):  # told before a worker is started
        check_goes_on(tmp_path, storage)


def test_rows_that_are_gone_are_missed(tmp_path: Path) -> None:
    folder, storage = tmp_path / "run", tmp_path / "store"
    folder.mkdir()
    check_rows_go_on(folder, str(storage))
    journal.append(folder / journal.METRICS, {"step": 12, "time": 0, "metrics": {"a": 1.0}})
    check_rows_go_on(folder, None)
    with pytest.raises(UserError, match=r"had 12 rows, but there is no folder"):
        check_rows_go_on(folder, str(storage))
    Path(shared_folder(folder, str(storage))).mkdir(parents=True)
    check_rows_go_on(folder, str(storage))
