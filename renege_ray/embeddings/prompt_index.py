"""Which prompts a table has embeddings for, and where: a million of them in some 200 MB.

Ids are kept as numbers of 64 bits, sorted, and prompts as one pyarrow column: as Python's texts, tuples and dicts they
would take several times as much.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from renege_ray.embeddings.words import Words
from renege_ray.tuning.table import FAILED, TuningTable

_ID = re.compile("[0-9a-f]{16}")


class PromptIndex(Mapping[str, str]):
    """{id: prompt} of the rows that have an embedding of their own, in the order of the table; P of them.

    Attributes:
        files: the paths of the table's files.
    """

    def __init__(self, table: TuningTable) -> None:
        """Read them. Raises ValueError or KeyError where a file is damaged or foreign."""
        self.files, found = _of_one_moment(table)
        self._ids = np.concatenate([np.empty(0, np.uint64), *(part.ids for part in found)])
        self._order = np.argsort(self._ids, kind="stable").astype(np.int32)
        self._sorted = self._ids[self._order]
        self._files = np.repeat(np.arange(len(found), dtype=np.int32), [len(part.ids) for part in found])
        self._rows = np.concatenate([np.empty(0, np.int32), *(part.rows for part in found)])
        self._prompts = pa.chunked_array([chunk for part in found for chunk in part.prompts.chunks], pa.string())
        self._words: Words | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:016x}" for number in self._ids.tolist())

    def __contains__(self, prompt_id: object) -> bool:
        return isinstance(prompt_id, str) and self._place(prompt_id) is not None

    def __getitem__(self, prompt_id: str) -> str:
        return str(self._prompts[self._found(prompt_id)].as_py())

    def row(self, prompt_id: str) -> tuple[str, int]:
        """The file that has a prompt's row, and which of the file's rows it is. Raises KeyError where there is none."""
        place = self._found(prompt_id)
        return self.files[self._files[place]], int(self._rows[place])

    def nearest(self, prompt: str) -> tuple[str, float] | None:
        """The prompt that shares most words with this one, and the share of the words of both that are in both
        (Jaccard); None where none shares any. The first call reads the words of all prompts.
        """
        self._words = self._words or Words(self._prompts)
        found = self._words.nearest(prompt)
        return None if found is None else (str(self._prompts[found[0]].as_py()), found[1])

    def _found(self, prompt_id: str) -> int:
        place = self._place(prompt_id)
        if place is None:
            raise KeyError(prompt_id)
        return place

    def _place(self, prompt_id: str) -> int | None:
        if not _ID.fullmatch(prompt_id):
            return None
        number = np.uint64(int(prompt_id, 16))
        place = int(np.searchsorted(self._sorted, number))
        return int(self._order[place]) if place < len(self._sorted) and self._sorted[place] == number else None


class _Part:
    """The rows of one file that have an embedding of their own: ids as numbers, places in the file, prompts."""

    def __init__(self, rows: pa.Table) -> None:
        good = pc.not_equal(rows["status"], FAILED)
        kept = rows.filter(good)
        self.ids = _numbers(kept["prompt_id"].to_pylist())
        self.rows = np.flatnonzero(good.to_numpy()).astype(np.int32)
        self.prompts = kept["prompt"].cast(pa.string())


def _numbers(ids: Sequence[str]) -> np.ndarray:
    """Ids of 16 hex digits as numbers, (P,) uint64."""
    if not all(map(_ID.fullmatch, ids)):
        raise ValueError("an id is not 16 hex digits")
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64)


def _of_one_moment(table: TuningTable) -> tuple[list[str], list[_Part]]:
    """The files of a table, which may be merged meanwhile, and what is in each."""
    while True:
        files = table.files()
        try:
            return files, [_Part(rows) for rows in table.read(files, ["prompt_id", "prompt", "status"])]
        except FileNotFoundError:
            if files == table.files():
                raise
