"""The study's file: wherever it lies, and whoever else has it open."""

import sqlite3
import threading
from pathlib import Path

import optuna
import pytest

from renege_ray.cluster.sweep.storage import STUDY_FILE, open_storage, study_url


@pytest.mark.parametrize("name", ["run", "why?", "a#b", "100%", "50%25", "Größe & Farbe", "红色", "a b", "x@y:z"])
def test_the_file_lies_in_its_folder_whatever_that_is_called(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    optuna.create_study(storage=open_storage(folder), study_name="s")
    assert [path.name for path in folder.iterdir()] == [STUDY_FILE]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert optuna.get_all_study_names(study_url(folder)) == ["s"]  # what a dashboard is given


@pytest.mark.slow
def test_a_locked_database_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Longer than SQLite waits by itself: another program's write, then its read, which lets nobody write."""
    study = optuna.create_study(storage=open_storage(tmp_path), study_name="s")
    for begin in ("begin exclusive", "begin; select count(*) from trials"):
        other = sqlite3.connect(tmp_path / STUDY_FILE, isolation_level=None, check_same_thread=False)
        for statement in begin.split("; "):
            other.execute(statement).fetchall()
        release = threading.Timer(8.0, lambda other=other: (other.rollback(), other.close()))
        release.start()
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.set_user_attr("note", 1)
        study.tell(trial, 1.0)
        release.join()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    told = capsys.readouterr().out.splitlines()
    assert 1 <= len(told) <= 2 and all("locked by another program" in line for line in told)
