"""Small files of a growing table merged into larger ones, with every row in some file at every moment.

A worker writes a file for as many rows as it has slots, so that little is lost with it. A million rows would be tens
of thousands of files, which take an hour to list and open in an object store. One process, and only one, merges them:

    1. the rows of some small files are copied into a hidden file, which says whose rows they are;
    2. it is counted, flushed to the disk and renamed: from now on the small files are superseded;
    3. the small files are deleted.

A kill during 1 leaves a hidden file, one during 3 leaves small files that readers pass over; `remove_leftovers`
deletes both. Files of different schemas, metadata included, are kept apart, and a merged file is never merged again.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from renege_ray.output.parquet_folder import (
    MERGED,
    SOURCES,
    SUFFIX,
    ParquetFolder,
    base_name,
    in_order,
    is_merged,
    remove_file,
    storing,
)

FEWEST_ROWS = 1024  # of a merged file: a million rows are less than a thousand files. 121 MB at the size of SD1.5
ROW_GROUP_BYTES = 8 * 2**20  # what is read for a single embedding, and held in memory by a merge
_AT_ONCE = 2  # small files in memory: with their tensors they are large


@dataclass(frozen=True)
class _Small:
    """What is known of a small file."""

    rows: int
    schema: pa.Schema


class _Stopped(Exception):
    """The file that is being merged is not wanted any more."""


class Merger:
    """Merges the small files of a table."""

    def __init__(self, table: ParquetFolder, stopping: Callable[[], bool] = lambda: False) -> None:
        """`stopping`: whether to leave the file that is being merged, and end; asked after each small file."""
        self._table, self._stopping = table, stopping
        self._small: dict[str, _Small] = {}
        self._schemas: list[pa.Schema] = []

    def merge(self, *, all_rows: bool = False) -> Iterator[str]:
        """Merge, and give the path of each merged file as soon as it is there, so that the caller may end this.

        Args:
            all_rows: also fewer rows than a merged file should have; for a table that is complete.

        Raises:
            OSError: a file cannot be written; the table is as it was then.
        """
        self._look()
        for sources, schema in self._groups(all_rows):
            try:
                merged = self._merge(sources, schema)
            except _Stopped:
                return
            yield merged

    def _groups(self, all_rows: bool) -> Iterator[tuple[dict[str, int], pa.Schema]]:
        """({path: rows} of the small files, their schema) of each merged file."""
        for schema in self._schemas:
            waiting: dict[str, int] = {}
            for path, small in self._small.items():
                if small.schema is not schema or small.rows >= FEWEST_ROWS:
                    continue
                waiting[path] = small.rows
                if sum(waiting.values()) >= FEWEST_ROWS:
                    yield waiting, schema
                    waiting = {}
            if all_rows and len(waiting) > 1:
                yield waiting, schema

    def _look(self) -> None:
        """Note rows and schema of the small files that have come."""
        paths = [path for path in self._table.files() if not is_merged(path)]
        self._small = {path: self._small[path] for path in paths if path in self._small}
        new = [path for path in paths if path not in self._small]
        for path, (rows, schema) in zip(new, in_order(self._rows_and_schema, new), strict=True):
            same = next((other for other in self._schemas if other.equals(schema, check_metadata=True)), None)
            if same is None:
                self._schemas.append(same := schema)
            self._small[path] = _Small(rows, same)

    def _rows_and_schema(self, path: str) -> tuple[int, pa.Schema]:
        with pq.ParquetFile(path, filesystem=self._table.filesystem) as file:
            return file.metadata.num_rows, file.schema_arrow

    def _merge(self, sources: Mapping[str, int], schema: pa.Schema) -> str:
        """`sources`: {path: rows}. Returns the path of the merged file."""
        filesystem, folder = self._table.filesystem, self._table.path
        name = f"{MERGED}{uuid.uuid4().hex}{SUFFIX}"
        temporary, final = f"{folder}/.{name}.part", f"{folder}/{name}"
        try:
            self._copy(sources, schema, temporary)
            written = pq.read_metadata(temporary, filesystem=filesystem).num_rows
            if written != sum(sources.values()):
                raise OSError(f"{written} of {sum(sources.values())} rows have arrived in {temporary}")
            _flush(filesystem, temporary)
            filesystem.move(temporary, final)
        except BaseException:
            remove_file(filesystem, temporary)
            raise
        _flush(filesystem, folder)
        for _ in in_order(filesystem.delete_file, sources):
            pass
        return final

    def _copy(self, sources: Mapping[str, int], schema: pa.Schema, path: str) -> None:
        """Copy rows in row groups that read well. Nobody asks for the statistics of columns, which are long."""
        whose = {SOURCES: json.dumps([[base_name(source), rows] for source, rows in sources.items()])}
        with (
            self._table.filesystem.open_output_stream(path, compression=None) as stream,
            pq.ParquetWriter(stream, schema, write_statistics=False, **storing(schema)) as writer,
        ):
            group: list[pa.Table] = []
            size = 0
            for rows in self._table.read(list(sources), schema.names, _AT_ONCE):
                if self._stopping():
                    raise _Stopped
                group.append(rows)
                size += rows.nbytes
                if size >= ROW_GROUP_BYTES:
                    _write_group(writer, group)
                    group, size = [], 0
            _write_group(writer, group)
            writer.add_key_value_metadata(whose)


def _write_group(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    if tables:
        rows = pa.concat_tables(tables)
        writer.write_table(rows, row_group_size=len(rows))


def _flush(filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Have a local file or folder on the disk: a power cut must not take rows whose other copy is deleted."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
