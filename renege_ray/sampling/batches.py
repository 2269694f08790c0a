"""Batches cut into pieces that fit into memory: as planned, then as measured, and smaller where that was too much."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

import torch

from renege_ray.errors import UserError, describe
from renege_ray.models.networks.compiled import room_for
from renege_ray.sampling.memory import GradientMemory

Item = TypeVar("Item")
Output = TypeVar("Output")
Failed = TypeVar("Failed")


class Meter(Protocol):
    """Of an accelerator's memory."""

    def start(self) -> None:
        """What is measured begins here."""
        ...

    def peak(self) -> float:
        """The most GiB that were in use since, beyond what was when it began."""
        ...


class MicroBatches:
    """How many samples are computed at once: as given, or as found.

    What is found begins with the plan. The first pieces are measured, and the size grows or shrinks to what fits by
    that; it is halved whenever memory does not suffice all the same.

    Attributes:
        size: the number of samples; what was found is kept for the rest of the run.
    """

    def __init__(
        self,
        given: Literal["auto"] | int,
        largest: int,
        field: str,
        *,
        known: int = 0,
        memory: GradientMemory | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Start with the whole batch where the size is to be found and nothing is planned.

        Args:
            given: the setting.
            largest: the size of a whole batch.
            field: what the configuration calls the setting.
            known: a size that is known (from a checkpoint) to fit, or 0.
            memory: what pieces are planned to take, where that is to be measured.
            meter: measures it.
        """
        planned = memory.samples() if memory is not None else largest
        self.size = known or (min(planned, largest) if given == "auto" else min(given, largest))
        self._largest, self._finds_size, self._field = largest, given == "auto", field
        measures = self._finds_size and not known and memory is not None
        self._memory, self._meter = memory, meter if measures else None

    def over(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Output], *, nested: bool = False
    ) -> Iterator[tuple[Sequence[Item], Output]]:
        """The pieces of a batch, in order and of nearly the same size, each with what `compute` makes of it.

        Args:
            items: the batch.
            compute: what is done with a piece.
            nested: this is part of what others compute in pieces, which may be made smaller if these cannot be.

        Raises:
            UserError: a piece of the given size, or a single sample, does not fit into the memory.
            torch.OutOfMemoryError: the same, if nested.
        """
        start = 0
        while start < len(items):
            left = len(items) - start
            pieces = -(-left // self.size)
            piece = items[start : start + -(-left // pieces)]
            if self._meter is not None:
                self._meter.start()
            with room_for(self.size):
                done = _try(compute, piece)
            if isinstance(done, Exception):
                self._halve(len(piece), done, nested)
                continue
            if self._meter is not None:
                self._adjust(len(piece), self._meter.peak())
            start += len(piece)
            yield piece, done[0]

    def _adjust(self, samples: int, measured: float) -> None:
        """Take what a piece has really used for the plan's figure, until a piece is as large as it may be."""
        assert self._memory is not None
        planned = self.size
        self._memory = self._memory.measured(samples, measured)
        self.size = max(1, min(self._memory.samples(), self._largest))
        if self.size <= max(planned, samples):
            self._meter = None

    def _halve(self, tried: int, error: Exception, nested: bool) -> None:
        self._meter = None
        if self._finds_size and tried > 1:
            self.size = max(1, tried // 2)
            return
        if nested:
            raise error
        raise UserError(
            f"{self._field}: {tried} does not fit into the memory of the accelerator; "
            "use a smaller one, 'auto' to have it found, or a model of smaller images"
        )


def _try(compute: Callable[[Sequence[Item]], Output], piece: Sequence[Item]) -> tuple[Output] | Exception:
    """What `compute` returns, or a new exception where the accelerator's memory did not suffice: the one that was
    raised holds on to all that the failed attempt had allocated.
    """
    try:
        return (compute(piece),)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
    torch.cuda.empty_cache()
    return torch.OutOfMemoryError(reason)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an accelerator's memory did not suffice, whichever library has noticed."""
    words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def together_or_alone(
    items: Sequence[Item],
    compute: Callable[[Sequence[Item]], Sequence[Output]],
    failed: Callable[[Item, str], Failed],
    fatal: tuple[type[Exception], ...] = (),
) -> list[Output | Failed]:
    """What `compute` makes of each item, in order. Where it raises for all together, each is tried alone, and what
    raises alone comes out as `failed(item, reason)`.

    Raises:
        UserError, torch.AcceleratorError, `fatal`: no single item is to blame for these.
    """
    if not items:
        return []
    blameless: tuple[type[Exception], ...] = (UserError, torch.AcceleratorError, *fatal)
    try:
        return list(compute(items))
    except blameless:
        raise
    except Exception as error:
        if len(items) == 1:
            return [failed(items[0], describe(error))]
    return [made for item in items for made in together_or_alone([item], compute, failed, fatal)]
