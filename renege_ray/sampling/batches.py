"""Batches cut into pieces that fit into the accelerator's memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import torch

from renege_ray.errors import UserError

Item = TypeVar("Item")
Output = TypeVar("Output")


class MicroBatches:
    """How many samples are computed at once: as given, or found by halving whenever memory does not suffice.

    Attributes:
        size: the number of samples; what was found is kept for the rest of the run.
    """

    def __init__(self, given: Literal["auto"] | int, largest: int, field: str, *, known: int = 0) -> None:
        """Start with the whole batch where the size is to be found.

        Args:
            given: the setting.
            largest: the size of a whole batch.
            field: what the configuration calls the setting.
            known: a size that is known (from a checkpoint) or expected to fit, or 0.
        """
        self.size = known or (largest if given == "auto" else min(given, largest))
        self._finds_size, self._field = given == "auto", field

    def over(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Output]
    ) -> Iterator[tuple[Sequence[Item], Output]]:
        """The pieces of a batch, in order, each with what `compute` makes of it.

        Raises:
            UserError: a piece of the given size, or a single sample, does not fit into the memory.
        """
        start = 0
        while start < len(items):
            piece = items[start : start + self.size]
            done = _try(compute, piece)
            if done is None:
                self._halve()
                continue
            start += len(piece)
            yield piece, done[0]

    def _halve(self) -> None:
        if not self._finds_size or self.size == 1:
            raise UserError(
                f"{self._field}: {self.size} does not fit into the memory of the accelerator; "
                "use a smaller one, 'auto' to have it found, or a model of smaller images"
            )
        self.size //= 2
        torch.cuda.empty_cache()


def _try(compute: Callable[[Sequence[Item]], Output], piece: Sequence[Item]) -> tuple[Output] | None:
    """What `compute` returns, or None where the accelerator's memory did not suffice. The exception ends here,
    since it holds on to all that the failed attempt had allocated.
    """
    try:
        return (compute(piece),)
    except torch.cuda.OutOfMemoryError:
        return None
