"""The default store, an SQLite file: wherever it lies, wherever it is moved to, and whoever else has it open."""

import shlex
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from renege_ray.cluster.tracking.command import main
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.cluster.tracking.runs import open_run, resolve_uri, ui_command
from renege_ray.cluster.tracking.uris import sqlite_file, sqlite_uri

ODD_NAMES = ["why?", "50%25 a#b", "红色 Größe x@y:z+1 &"]


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def whole_run(folder: Path) -> RunLog:
    with open_run(folder, job="train_global", experiment="tests", params={}) as log:
        (folder / "note.txt").write_text(folder.name)
        log.artifact(folder / "note.txt")
        log.finish()
    return log


def note(store: Path, log: RunLog) -> str:
    """What `whole_run` has kept, read through MLflow alone."""
    client = MlflowClient(sqlite_uri(store))
    return Path(client.download_artifacts(str(log.run_id), "note.txt")).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_store_lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    log = whole_run(tmp_path / name / "run")
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["mlartifacts", "mlflow.db", "run"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert note(tmp_path / name / "mlflow.db", log) == "run"
    assert sqlite_file(resolve_uri(log.uri, tmp_path)) == tmp_path / name / "mlflow.db"


def test_the_command_that_is_printed_names_it(tmp_path: Path) -> None:
    uri = resolve_uri(None, tmp_path / "why? 100% 红色" / "run")
    given = shlex.split(ui_command(uri))
    assert sqlite_file(given[given.index("--backend-store-uri") + 1]) == tmp_path / "why? 100% 红色" / "mlflow.db"


@pytest.mark.slow
def test_a_store_that_was_moved_or_copied_knows_where_its_artifacts_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, copy = tmp_path / "old", tmp_path / "new? place", tmp_path / "copy"
    first = whole_run(old / "run1")
    old.rename(new)
    second = whole_run(new / "run2")
    assert not old.exists()
    assert (note(new / "mlflow.db", first), note(new / "mlflow.db", second)) == ("run1", "run2")
    assert [record.getMessage() for record in caplog.records if "has moved" in record.getMessage()] != []

    subprocess.run(["cp", "-r", str(new), str(copy)], check=True)
    third = whole_run(copy / "run3")
    assert note(copy / "mlflow.db", third) == "run3"
    assert not (new / "mlartifacts" / str(third.run_id)).exists()
    (new / "mlartifacts").rename(tmp_path / "aside")  # a copy lives by itself
    assert note(copy / "mlflow.db", first) == "run1"

    caplog.clear()
    (tmp_path / "link").symlink_to(copy)
    assert note(copy / "mlflow.db", whole_run(tmp_path / "link" / "run4")) == "run4"
    (tmp_path / "link").unlink()
    assert not caplog.records, "a link is no move"
    copy.rename(tmp_path / "last")
    assert main(["send", str(tmp_path / "last" / "run1")]) == 0  # mends without a run, too
    assert note(tmp_path / "last" / "mlflow.db", first) == "run1"


@pytest.mark.slow
def test_a_locked_store_gets_everything_in_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole_run(tmp_path / "first")
    with open_run(tmp_path / "run", job="train_global", experiment="tests", params={}) as log:
        assert log.flush()
        other = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None, check_same_thread=False)
        other.execute("begin exclusive")
        release = threading.Timer(12.0, lambda: (other.rollback(), other.close()))
        release.start()
        for step in range(5):
            log.metrics(step, {"x": float(step)})
        release.join()
        log.finish()
    found = MlflowClient(log.uri).get_metric_history(str(log.run_id), "x")
    assert [metric.value for metric in found] == [0, 1, 2, 3, 4]
    assert len(caplog.records) <= 1 and all("is locked" in record.getMessage() for record in caplog.records)
