"""Which prompts a table has embeddings for, and where: a million of them in some 200 MB.

Ids are kept as numbers of 64 bits, sorted, and prompts as one pyarrow column: as Python's texts, tuples and dicts they
would take several times as much.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from renege_ray.tuning.table import FAILED, TuningTable

_ID = re.compile("[0-9a-f]{16}")
_WORD = re.compile(r"[^\W_]+")
_COLUMNS = ["prompt_id", "prompt", "status"]


class PromptIndex(Mapping[str, str]):
    """{id: prompt} of the rows that have an embedding of their own, in the order of the table; P of them.

    Attributes:
        files: the paths of the table's files.
    """

    def __init__(self, table: TuningTable) -> None:
        """Read them. Raises ValueError or KeyError where a file is damaged or foreign."""
        self.files, content = _of_one_moment(table)
        good = [np.flatnonzero(rows["status"].to_numpy(zero_copy_only=False) != FAILED) for rows in content]
        kept = [rows.take(places) for rows, places in zip(content, good, strict=True)]
        ids = [_numbers(rows["prompt_id"].to_pylist()) for rows in kept]
        self._ids = np.concatenate([np.empty(0, np.uint64), *ids])
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]
        self._files = np.repeat(np.arange(len(good), dtype=np.int32), [len(places) for places in good])
        self._rows = np.concatenate([np.empty(0, np.int32), *good]).astype(np.int32)
        texts = [chunk.cast(pa.large_string()) for rows in kept for chunk in rows["prompt"].chunks]
        self._prompts = pa.concat_arrays(texts) if texts else pa.array([], pa.large_string())
        self._words: _Words | None = None

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
        self._words = self._words or _Words(chunk.as_py() for chunk in self._prompts)
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


class _Words:
    """The different words of P prompts as numbers, one prompt's after the other's."""

    def __init__(self, prompts: Iterator[str]) -> None:
        self._numbers: dict[str, int] = {}
        lengths: list[int] = []
        numbers = np.fromiter(self._of_all(prompts, lengths), np.int32)
        self._lengths = np.array(lengths, np.int32)
        self._prompts = np.repeat(np.arange(len(lengths), dtype=np.int32), self._lengths)
        order = np.argsort(numbers, kind="stable")
        self._prompts = self._prompts[order]
        self._starts = np.searchsorted(numbers[order], np.arange(len(self._numbers) + 1))

    def _of_all(self, prompts: Iterator[str], lengths: list[int]) -> Iterator[int]:
        for prompt in prompts:
            words = _words(prompt)
            lengths.append(len(words))
            for word in words:
                yield self._numbers.setdefault(word, len(self._numbers))

    def nearest(self, prompt: str) -> tuple[int, float] | None:
        """The place of the first prompt of the greatest similarity, and this; None where it is 0."""
        words = _words(prompt)
        known = [self._numbers[word] for word in words if word in self._numbers]
        if not known:
            return None
        common = np.zeros(len(self._lengths), np.int32)
        for number in known:
            common[self._prompts[self._starts[number] : self._starts[number + 1]]] += 1
        similarity = common / (len(words) + self._lengths - common)
        best = int(similarity.argmax())
        return best, float(similarity[best])


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def _numbers(ids: Sequence[str]) -> np.ndarray:
    """Ids of 16 hex digits as numbers, (P,) uint64."""
    if not all(map(_ID.fullmatch, ids)):
        raise ValueError("an id is not 16 hex digits")
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64)


def _of_one_moment(table: TuningTable) -> tuple[list[str], list[pa.Table]]:
    """The files of a table, which may be merged meanwhile, and the columns of the index in each."""
    while True:
        files = table.files()
        try:
            return files, list(table.read(files, _COLUMNS))
        except FileNotFoundError:
            if files == table.files():
                raise
