"""The notes by which a prompt that kills its workers is found, on a real file system and without Ray."""

from pathlib import Path

import pyarrow.fs
import pytest

from renege_ray.cluster.pipelines.kill_journal import (
    MAX_DEATHS_AT_START,
    KillJournal,
    counted_start,
    journal_path,
    work_has_begun,
)

FILES = pyarrow.fs.LocalFileSystem()


def test_deaths_count_against_those_that_were_present(tmp_path: Path) -> None:
    path = str(tmp_path / "chunk.json")
    first = KillJournal(FILES, path)
    assert not first.restarted and first.kills == {}
    first.note(["a", "b"])
    first.note(["b", "c"])
    second = KillJournal(FILES, path)  # the first worker has died
    assert second.restarted and second.kills == {"b": 1, "c": 1}
    second.note(["b"])
    third = KillJournal(FILES, path)
    assert third.kills == {"b": 2, "c": 1}
    third.close()
    third.close()
    assert not any(tmp_path.iterdir())


def test_work_has_begun_when_there_are_notes_of_this_session(tmp_path: Path) -> None:
    folder = str(tmp_path)
    KillJournal(FILES, journal_path(folder, "another", "chunk")).note(["a"])
    with counted_start(FILES, folder, "session", workers=1):
        assert not work_has_begun(FILES, folder, "session")
    KillJournal(FILES, journal_path(folder, "session", "chunk")).note(["a"])
    assert work_has_begun(FILES, folder, "session")


def test_workers_that_die_while_they_load_are_not_replaced_for_ever(tmp_path: Path) -> None:
    def die() -> None:
        with counted_start(FILES, str(tmp_path), "session", workers=2):
            raise KeyboardInterrupt  # what leaves the mark is that nobody gets to its end

    with counted_start(FILES, str(tmp_path), "session", workers=2):
        pass
    assert not any(tmp_path.iterdir())
    for _ in range(MAX_DEATHS_AT_START + 2):
        with pytest.raises(KeyboardInterrupt):
            die()
    with pytest.raises(RuntimeError, match="is memory short"):
        die()
    with counted_start(FILES, str(tmp_path), "another session", workers=2):
        pass
