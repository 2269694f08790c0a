"""Where checkpoints are, and a resumed run that does not find its own."""

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs
import pytest
import torch

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.training.checkpoints import (
    CheckpointStore,
    check_goes_on,
    check_rows_go_on,
    checkpoint_root,
    shared_folder,
)
from renege_ray.errors import UserError
from renege_ray.sampling.images import Evaluation
from renege_ray.training.state import BestEmbedding, TrainingState


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


def writer(step: int) -> Callable[[Path], None]:
    """The files of a checkpoint, another one beside those of the state."""
    n = torch.full((1, 2, 3), float(step))
    state = TrainingState(
        step, {"averaged": n}, BestEmbedding(n.clone(), step, 0.0), (), "", {}, Evaluation((), {}), "a"
    )

    def write(folder: Path) -> None:
        (folder / "beside.json").write_text(f"{step}")
        state.write_files(folder)

    return write


def test_a_checkpoint_is_whole_only_with_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while files are copied, which happens in no order: what is missing is missed."""
    store, copy = CheckpointStore(str(tmp_path)), pyarrow.fs.copy_files
    store.replace("attempt-001", "step-000001", writer(1))

    def killed_after_copying(*args: object, **options: object) -> None:
        copy(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(pyarrow.fs, "copy_files", killed_after_copying)
    with pytest.raises(KeyboardInterrupt):
        store.replace("attempt-001", "step-000002", writer(2))
    monkeypatch.undo()
    assert (tmp_path / "attempt-001" / "step-000002" / "beside.json").exists()
    found = store.newest_intact()
    assert found is not None and found[0] == "attempt-001/step-000001"
    store.replace("attempt-001", "step-000002", writer(2))  # the torn one is made anew
    assert [path.name for path in (tmp_path / "attempt-001").iterdir()] == ["step-000002"]


def test_a_whole_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    """It may be the only one, and a process that is killed on the way would leave none."""
    store = CheckpointStore(str(tmp_path))
    store.replace("attempt-001", "step-000001", writer(1))

    def never(folder: Path) -> None:
        raise AssertionError("it is written again")

    store.replace("attempt-001", "step-000001", never)


def test_one_who_looks_while_another_writes_finds_one(tmp_path: Path) -> None:
    """A killed driver's worker lives on for some seconds, and keeps a checkpoint while its successor looks for one."""
    store, over = CheckpointStore(str(tmp_path)), threading.Event()
    store.replace("attempt-001", "step-000000", writer(0))

    def write() -> None:
        for step in range(1, 200):
            store.replace("attempt-001", f"step-{step:06d}", writer(step))
        over.set()

    other = threading.Thread(target=write)
    other.start()
    newest = -1
    while not over.is_set():
        found = store.newest_intact()
        assert found is not None and found[1].step >= newest
        newest = found[1].step
    other.join()
