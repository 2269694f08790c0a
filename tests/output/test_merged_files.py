"""Small files of a table merged into larger ones: no row is lost or doubled, whenever a process ends or looks."""

import resource
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from renege_ray.output import merged_files
from renege_ray.output.merged_files import Merger
from renege_ray.output.parquet_folder import MERGED, NewFiles, base_name, in_order
from renege_ray.tuning.table import TuningTable
from tests.dying_files import DyingFiles, Killed
from tests.object_store import Store, store
from tests.tuned_rows import SCHEMA, prompt, tuned_row, write_table

__all__ = ["store"]


@pytest.fixture(autouse=True)
def ten_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged file has ten rows here."""
    monkeypatch.setattr(merged_files, "FEWEST_ROWS", 10)


def content(table: TuningTable) -> list[str]:
    """All rows with all columns, in the order of their ids; as texts, for NaN is not equal to itself."""
    return sorted(repr(row) for rows in table.read(table.files(), SCHEMA.names) for row in rows.to_pylist())


def prompts(tables: Iterator[pa.Table]) -> list[str]:
    return sorted(text for rows in tables for text in rows["prompt"].to_pylist())


def expected(rows: int, first: int = 0) -> list[str]:
    return sorted(map(prompt, range(first, first + rows)))


def test_a_kill_at_any_step_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    """At each step a process is killed that merges two groups of four files; then the table is opened anew."""
    original = write_table(tmp_path / "original", files=9, rows=3)
    before = content(original)
    for steps in count():
        root = tmp_path / f"killed-{steps}"
        shutil.copytree(original.path, root)
        killed = TuningTable(str(root))
        files = DyingFiles(steps)
        killed.filesystem = pyarrow.fs.PyFileSystem(files)
        if not files.dead:
            try:
                merged = list(Merger(killed).merge())
            except Killed:
                assert files.dead
            else:
                assert len(merged) == 2
                break
        table = TuningTable(str(root))
        assert content(table) == before, f"after {steps} steps"
        assert len(prompts(table.rows())) == len(table.ids()) == 27
        table.remove_leftovers()
        assert sorted(table.files()) == sorted(map(str, root.iterdir())), "nothing is left of the killed process"
        assert content(table) == before
        list(Merger(table).merge(all_rows=True))
        assert content(table) == before
        assert len(list(root.iterdir())) <= 4
    assert steps == 2 * (2 + 4), "each group: a file is begun, renamed, and four are deleted"


@pytest.mark.parametrize("seen", [0, 1, 3, 5])
def test_a_reader_of_new_files_sees_each_row_once(tmp_path: Path, seen: int) -> None:
    """It has seen some of the files before they are merged, and others are added afterwards."""
    table = write_table(tmp_path, files=seen, rows=3) if seen else TuningTable(str(tmp_path))
    reader = NewFiles(["prompt"])
    assert prompts(reader.read(table)) == expected(3 * seen)
    write_table(tmp_path, files=5 - seen, rows=3, first=3 * seen)
    assert len(list(Merger(table).merge(all_rows=True))) == 1
    assert prompts(reader.read(table)) == expected(15 - 3 * seen, 3 * seen)
    write_table(tmp_path, files=1, rows=2, first=15)
    assert prompts(reader.read(table)) == expected(2, 15)
    assert prompts(reader.read(table)) == []


def test_files_may_be_merged_while_they_are_read(tmp_path: Path) -> None:
    """More files than are read ahead: those that are gone when their turn comes are read in their merged file."""
    table = write_table(tmp_path, files=40, rows=2)
    rows = table.rows(["prompt"])
    found = next(rows)["prompt"].to_pylist()
    assert len(list(Merger(table).merge())) == 8
    assert sorted(found + prompts(rows)) == expected(80)


def test_a_file_that_is_listed_and_not_there_is_an_error(tmp_path: Path) -> None:
    table = write_table(tmp_path, files=1, rows=2)
    (tmp_path / "part-gone.parquet").symlink_to(tmp_path / "nowhere")
    table._list = lambda: [str(tmp_path / "part-gone.parquet")]  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError):
        list(table.rows())


def test_a_listing_during_a_merge_does_not_count(tmp_path: Path) -> None:
    """One that has begun before the merged file was there, and ended when the small ones were not, has no rows."""
    table = write_table(tmp_path, files=4, rows=3)
    list(Merger(table).merge())
    now, stale = table._list(), [list[str]()]
    table._list = lambda: stale.pop() if stale else now  # type: ignore[method-assign]
    assert len(table.ids()) == 12 and not stale


def test_files_of_different_schemas_stay_apart(tmp_path: Path) -> None:
    """Also where only the metadata differ, as after an update of the package."""
    table = write_table(tmp_path, files=4, rows=3)
    other = SCHEMA.with_metadata({**SCHEMA.metadata, b"package_version": b"99"})
    narrow = SCHEMA.remove(SCHEMA.get_field_index("seconds"))
    for number in range(4):
        table.write([tuned_row(100 + 3 * number + i) for i in range(3)], other)
    table.write([tuned_row(200)], narrow)
    merged = list(Merger(table).merge(all_rows=True))
    schemas = [pq.read_schema(path).remove_metadata() for path in merged]
    assert len(merged) == 2 and schemas[0].equals(schemas[1]) and schemas[0].equals(SCHEMA.remove_metadata())
    metadata = [pq.read_schema(path).metadata for path in merged]
    assert sorted(found.get(b"package_version", b"") for found in metadata) == sorted(
        [SCHEMA.metadata.get(b"package_version", b""), b"99"]
    )
    assert len(table.files()) == 3, "a single file is not merged with itself"
    assert len(table.ids()) == 12 + 12 + 1


def test_few_rows_wait_for_more_and_merged_files_stay(tmp_path: Path) -> None:
    table = write_table(tmp_path, files=3, rows=3)
    merger = Merger(table)
    assert list(merger.merge()) == [], "nine rows are too few"
    write_table(tmp_path, files=2, rows=3, first=9)
    (first,) = merger.merge()
    assert [base_name(path).startswith(MERGED) for path in table.files()] == [False, True]
    write_table(tmp_path, files=1, rows=3, first=15)
    (second,) = merger.merge(all_rows=True)
    assert sorted(table.files()) == sorted([first, second]) and list(merger.merge(all_rows=True)) == []
    assert len(table.ids()) == 18
    write_table(tmp_path, files=1, rows=10, first=18)
    assert list(merger.merge(all_rows=True)) == [], "a file that is large enough is as good as a merged one"


def test_row_groups_are_of_a_size_that_reads_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_table(tmp_path, files=4, rows=3)
    size = next(table.read(table.files(), SCHEMA.names)).nbytes
    monkeypatch.setattr(merged_files, "ROW_GROUP_BYTES", size * 3 // 2)
    (path,) = Merger(table).merge()
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [6, 6]
        assert file.schema_arrow.field("embedding").type == SCHEMA.field("embedding").type


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    table = write_table(tmp_path, files=4, rows=3)
    before = sorted(tmp_path.iterdir())
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses the rest of a larger file
    try:
        with pytest.raises(OSError, match="Errno"):
            list(Merger(table).merge())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before and len(table.ids()) == 12


def test_a_merge_is_left_when_the_job_is_to_stop(tmp_path: Path) -> None:
    """A file of large embeddings takes many seconds to copy, which are not for a job to spend that was asked to end."""
    table = write_table(tmp_path, files=8, rows=3)
    before, answers = sorted(tmp_path.iterdir()), iter([False, False, True])
    assert list(Merger(table, lambda: next(answers)).merge()) == []
    assert sorted(tmp_path.iterdir()) == before and len(table.ids()) == 24


def test_results_come_in_order() -> None:
    assert list(in_order(str, range(100), at_once=3)) == list(map(str, range(100)))
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 / number, [1, 0, 2]))


@pytest.mark.slow
def test_files_in_an_object_store_are_merged(store: Store) -> None:
    table = write_table(store.uri("bucket/renege/prompts-0"), files=5, rows=3)
    reader = NewFiles(["prompt"])
    assert prompts(reader.read(table)) == expected(15)
    before = content(table)
    list(Merger(table).merge())
    assert content(table) == before and len(table.files()) == 2 and prompts(reader.read(table)) == []
    assert len([key for key in store.objects() if not key.endswith("/")]) == 2
