"""How alike prompts are: the share of the words of two that are in both (Jaccard)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

_AT_ONCE = 10_000  # prompts whose words are texts at the same time
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class _Some:
    """Some prompts: the hashes of the different words of each, one prompt after the other, and how many each has."""

    hashes: np.ndarray
    """(words,) int64: of a million prompts some 100 MB, where texts would take a GB."""
    lengths: np.ndarray
    """(prompts,) int64."""


class Words:
    """The words of P prompts, of which there is one at least."""

    def __init__(self, prompts: pa.ChunkedArray) -> None:
        starts = range(0, len(prompts), _AT_ONCE)
        self._parts = [_read(prompts.slice(start, _AT_ONCE).to_pylist()) for start in starts]

    def nearest(self, prompt: str) -> tuple[int, float] | None:
        """The place of the first prompt of the greatest similarity, and this; None where it is 0."""
        words = np.array([hash(word) for word in _words(prompt)], np.int64)
        similarity = np.concatenate(list(self._similarities(words)))
        best = int(similarity.argmax())
        return (best, float(similarity[best])) if similarity[best] else None

    def _similarities(self, words: np.ndarray) -> Iterator[np.ndarray]:
        for part in self._parts:
            places = np.flatnonzero(np.isin(part.hashes, words))
            whose = np.searchsorted(np.cumsum(part.lengths), places, side="right")
            common = np.bincount(whose, minlength=len(part.lengths))
            yield common / np.maximum(len(words) + part.lengths - common, 1)


def _read(prompts: list[str]) -> _Some:
    words = [_words(prompt) for prompt in prompts]
    lengths = np.array([len(found) for found in words], np.int64)
    return _Some(np.fromiter(map(hash, chain.from_iterable(words)), np.int64, int(lengths.sum())), lengths)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
