"""A table in a storage is found from its run's output folder, and by its URI."""

from pathlib import Path

import pytest

from renege_ray.__main__ import main
from renege_ray.config.run import parse_config, read_config
from renege_ray.embeddings.names import parse_methods, resolve
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.embeddings.tables import POINTER, find_table, run_of_table
from renege_ray.errors import UserError
from renege_ray.output.folder import CONFIG_FILE
from renege_ray.output.storage import join, put_file
from tests.embeddings.test_check import PROMPTS, write_run
from tests.object_store import Store, store

__all__ = ["store"]


def run_in(store: Store, folder: Path) -> str:
    """A run whose table lies in the store, as the job leaves it; returns its folder there."""
    shared = store.uri("bucket/renege/run-1")
    write_run(folder, join(shared, "prompts-0"))
    (folder / POINTER).write_text(f"{join(shared, 'prompts-0')}\n")
    put_file(folder / CONFIG_FILE, shared)
    return shared


@pytest.mark.slow
def test_a_table_in_a_storage_is_used_as_a_local_one(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = run_in(store, tmp_path)
    table = join(shared, "prompts-0")
    names = [str(tmp_path), shared, table]
    for name in names:
        assert find_table(name) == table
        assert sorted(PromptEmbeddings.open(name).prompts.values()) == sorted(PROMPTS)
        tuned = run_of_table(name)
        assert tuned is not None and tuned.tuning == read_config(tmp_path).tuning
    methods = parse_methods([f"prompt={name}" for name in names[:1]] + ["null"])
    assert resolve(methods, read_config(tmp_path), PROMPTS)[0].table == table
    for name in names:
        assert main(["embedding", "check", name, "--rows", "1"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith("recorded rewards are met to 0.001")
        flags = ["--model", str(tmp_path / "model"), "--num-inference-steps", "2", "--negative", name]
        out = tmp_path / f"images-{names.index(name)}"
        assert main(["generate", "--prompt", PROMPTS[0], *flags, "--output-dir", str(out)]) == 0
        assert len(list((out / "images").iterdir())) == 1


def test_what_is_not_in_a_storage_is_one_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / POINTER).write_text(store.uri("no-bucket/renege/prompts-0"))
    for name in (str(tmp_path), store.uri("no-bucket/renege")):
        with pytest.raises(UserError, match="no-bucket"):
            PromptEmbeddings.open(name)
    with pytest.raises(UserError, match="holds no tuned prompts"):
        PromptEmbeddings.open(store.uri("bucket/nothing/here"))
    with pytest.raises(UserError, match="in the environment"):
        main(["embedding", "check", "s3://key:hunter2@bucket/x"])
    methods = parse_methods([f"prompt={store.uri('no-bucket/x')}"])
    with pytest.raises(UserError, match=r"--method .*no-bucket"):
        resolve(methods, parse_config({}), PROMPTS)
