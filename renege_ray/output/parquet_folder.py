"""A table as a folder of Parquet files, each written whole or not at all.

A row is kept as soon as its file is there, so the folder is the result and the checkpoint in one: what is in it
is done, and nothing else is. It may lie on any filesystem that pyarrow knows.
"""

import math
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from torch import Tensor

from renege_ray.output.storage import join, open_folder

SUFFIX = ".parquet"


class ParquetFolder(ABC):
    """The files of a table.

    Attributes:
        root: folder or URI.
    """

    def __init__(self, root: str) -> None:
        self.root = join(root)
        self.filesystem, self.path = open_folder(root)

    def create(self) -> None:
        """Make the folder."""
        self.filesystem.create_dir(self.path, recursive=True)

    @abstractmethod
    def ids(self) -> set[str]:
        """The ids of all rows."""

    def files(self) -> list[str]:
        """The paths of the files that are whole, in the table's filesystem."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.path for info in infos if info.base_name.endswith(SUFFIX) and info.base_name[0] != ".")

    def write(self, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> str:
        """Add rows as a new file, whole or not at all. Returns its path. A number that a row lacks is NaN.

        Raises:
            OSError: it cannot be written (the disk is full, say); nothing of it is left then.
        """
        name = f"part-{uuid.uuid4().hex}{SUFFIX}"
        temporary, final = f"{self.path}/.{name}.part", f"{self.path}/{name}"
        self.create()
        try:
            # Tensors do not get smaller by compression, and plain pages can be read from the mapped file.
            pq.write_table(
                _table(rows, schema),
                temporary,
                filesystem=self.filesystem,
                compression={field.name: "none" if _is_tensor(field) else "zstd" for field in schema},
                use_dictionary=False,
            )
            self.filesystem.move(temporary, final)
        except BaseException:
            remove_file(self.filesystem, temporary)
            raise
        return final

    def remove_leftovers(self) -> None:
        """Delete what killed writers have left: everything that is hidden."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.base_name.startswith("."):
                self.filesystem.delete_file(info.path)

    def read(self, files: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The content of files, one after the other; all but the tensors where no columns are named."""
        for path in files:
            with pq.ParquetFile(path, filesystem=self.filesystem) as file:
                wanted = columns or [field.name for field in file.schema_arrow if not _is_tensor(field)]
                yield file.read(columns=list(wanted))


class NewFiles:
    """The files of a growing table that were not there at the last look."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def read(self, table: ParquetFolder) -> Iterator[pa.Table]:
        """Their content, one after the other, but for the tensors."""
        new = [path for path in table.files() if path not in self._seen]
        for path, rows in zip(new, table.read(new), strict=True):
            self._seen.add(path)
            yield rows


def remove_file(filesystem: pyarrow.fs.FileSystem, path: str) -> None:
    """Delete a file that may not be there."""
    if filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
        filesystem.delete_file(path)


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
