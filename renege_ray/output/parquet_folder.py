"""A table as a folder of Parquet files, each written whole or not at all.

A row is kept as soon as its file is there, so the folder is the result and the checkpoint in one: what is in it
is done, and nothing else is. It may lie on any filesystem that pyarrow knows.

Small files are merged into larger ones while the table grows (`renege_ray.output.merged_files`). A merged file says
which files it has taken the place of; where these are still there, readers pass over them.
"""

import json
import math
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from torch import Tensor

from renege_ray.output.storage import join, open_folder

SUFFIX = ".parquet"
MERGED = "part-merged-"  # begins the name of a file that has taken the place of others
SOURCES = "merged_from"  # in such a file's metadata: [[name, rows], ...] of these others, in the order of its rows

_AT_ONCE = 16  # files that are read at once: a store answers after tens of milliseconds, however little is wanted

T = TypeVar("T")
Result = TypeVar("Result")


class ParquetFolder(ABC):
    """The files of a table.

    Attributes:
        root: folder or URI.
    """

    def __init__(self, root: str) -> None:
        self.root = join(root)
        self.filesystem, self.path = open_folder(root)
        self._sources: dict[str, dict[str, int]] = {}

    def create(self) -> None:
        """Make the folder."""
        self.filesystem.create_dir(self.path, recursive=True)

    @abstractmethod
    def ids(self) -> set[str]:
        """The ids of all rows."""

    def files(self) -> list[str]:
        """The paths of the files that are whole and that no merged one has taken the place of."""
        listed = self._listed()
        superseded = self._superseded(listed)
        return [path for path in listed if path not in superseded]

    def sources(self, path: str) -> Mapping[str, int]:
        """{name: how many rows} of the files that a merged one has taken the place of, in the order of its rows; empty
        for any other file.
        """
        if not is_merged(path):
            return {}
        if path not in self._sources:
            metadata = pq.read_metadata(path, filesystem=self.filesystem).metadata
            self._sources[path] = dict(json.loads(metadata[SOURCES.encode()]))
        return self._sources[path]

    def write(self, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> str:
        """Add rows as a new file, whole or not at all. Returns its path. A number that a row lacks is NaN.

        Raises:
            OSError: it cannot be written (the disk is full, say); nothing of it is left then.
        """
        name = f"part-{uuid.uuid4().hex}{SUFFIX}"
        temporary, final = f"{self.path}/.{name}.part", f"{self.path}/{name}"
        self.create()
        try:
            pq.write_table(_table(rows, schema), temporary, filesystem=self.filesystem, **storing(schema))
            self.filesystem.move(temporary, final)
        except BaseException:
            remove_file(self.filesystem, temporary)
            raise
        return final

    def remove_leftovers(self) -> None:
        """Delete what killed writers have left: everything that is hidden, and what a merged file holds already."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        hidden = [info.path for info in self.filesystem.get_file_info(selector) if info.base_name.startswith(".")]
        for path in [*hidden, *self._superseded(self._listed())]:
            self.filesystem.delete_file(path)

    def read(
        self, files: Sequence[str], columns: Sequence[str] | None = None, at_once: int = _AT_ONCE
    ) -> Iterator[pa.Table]:
        """The content of files, one after the other; all but the tensors where no columns are named.

        Raises:
            FileNotFoundError: a file has been merged meanwhile. `rows` and `NewFiles` go on with the merged one.
        """

        def content(path: str) -> pa.Table:
            with pq.ParquetFile(path, filesystem=self.filesystem) as file:
                wanted = columns or [field.name for field in file.schema_arrow if not _is_tensor(field)]
                return file.read(columns=list(wanted))

        return in_order(content, files, at_once)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows, each once, whatever is merged meanwhile; all but the tensors where no columns are named."""
        return NewFiles(columns).read(self)

    def _listed(self) -> list[str]:
        """All that are whole. No listing is of one moment: one that begins before a merged file is there, and ends when
        its sources are not, would lack their rows. So it counts if a later one finds the same merged files.
        """
        listed, later = self._list(), self._list()
        while list(filter(is_merged, later)) != list(filter(is_merged, listed)):
            listed, later = later, self._list()
        return listed

    def _list(self) -> list[str]:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.path for info in infos if info.base_name.endswith(SUFFIX) and info.base_name[0] != ".")

    def _superseded(self, listed: Sequence[str]) -> set[str]:
        """Those of these files whose rows a merged one holds, too."""
        names = {name for sources in in_order(self.sources, filter(is_merged, listed)) for name in sources}
        return {path for path in listed if base_name(path) in names}


class NewFiles:
    """The rows of a growing table that were not there at the last look."""

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        """`columns`: that are wanted; all but the tensors where none are named."""
        self._columns = columns
        self._seen: set[str] = set()

    def read(self, table: ParquetFolder) -> Iterator[pa.Table]:
        """These rows, some at a time; none comes twice, and none is left out, whatever is merged meanwhile."""
        while True:
            new = [path for path in table.files() if base_name(path) not in self._seen]
            unread = [path for path in new if self._unseen(table.sources(path) or {base_name(path): 1})]
            try:
                for path, rows in zip(unread, table.read(unread, self._columns), strict=True):
                    found = self._without_seen(rows, table.sources(path))
                    self._note(path, table)
                    yield found
            except FileNotFoundError:
                if set(new) <= set(table.files()):
                    raise
                continue
            for path in new:
                self._note(path, table)
            return

    def _unseen(self, names: Iterable[str]) -> bool:
        return any(name not in self._seen for name in names)

    def _without_seen(self, rows: pa.Table, sources: Mapping[str, int]) -> pa.Table:
        """The rows of a merged file but for those that have come from its sources before."""
        if self._seen.isdisjoint(sources):
            return rows
        kept, start = [], 0
        for name, count in sources.items():
            if name not in self._seen:
                kept.append(rows.slice(start, count))
            start += count
        return pa.concat_tables(kept)

    def _note(self, path: str, table: ParquetFolder) -> None:
        self._seen.add(base_name(path))
        self._seen.difference_update(table.sources(path))  # whoever sees a merged file passes over its sources


def base_name(path: str) -> str:
    """A file's name without its folder."""
    return path.rpartition("/")[2]


def in_order(function: Callable[[T], Result], items: Iterable[T], at_once: int = _AT_ONCE) -> Iterator[Result]:
    """What a function makes of each item, in their order; some are computed ahead, in threads."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(at_once)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def remove_file(filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Delete a file that may not be there."""
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
        filesystem.delete_file(path)


def storing(schema: pa.Schema) -> dict[str, Any]:
    """How a file is written. Tensors do not get smaller by compression, and plain pages can be read from the mapped
    file.
    """
    compression = {field.name: "none" if _is_tensor(field) else "zstd" for field in schema}
    return {"compression": compression, "use_dictionary": False}


def is_merged(path: str) -> bool:
    """Whether this file has taken the place of others."""
    return base_name(path).startswith(MERGED)


def _is_tensor(field: pa.Field) -> bool:
    return isinstance(field.type, pa.FixedShapeTensorType)


def _table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = [row.get(field.name, math.nan) for row in rows]
        if _is_tensor(field):
            stacked = np.stack([_half(value).reshape(field.type.shape) for value in values])
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(stacked).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _half(embedding: object) -> np.ndarray:
    assert isinstance(embedding, Tensor)
    return np.asarray(embedding.half().cpu().numpy())
