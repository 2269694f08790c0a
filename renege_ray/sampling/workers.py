"""The one thing that a use case knows about other processes: its rank, how many there are, and a sum over
all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _alone(values: Tensor) -> Tensor:
    return values


def _nobody_to_wait_for() -> None:
    pass


@dataclass(frozen=True)
class Workers:
    """The group of processes that share a job. The default is a single process.

    `all_sum` takes a tensor of the same shape and dtype on every rank and returns the sum over the ranks;
    every rank has to call it equally often. No other communication is needed: each rank fills its own entries
    of a table of zeros, and the sum is the whole table.

    A sum fails where some rank is long in coming. `meet` waits for all, however long it takes: it stands after what may
    take one rank much longer than another, such as loading.
    """

    rank: int = 0
    world_size: int = 1
    all_sum: Callable[[Tensor], Tensor] = _alone
    meet: Callable[[], None] = _nobody_to_wait_for

    def share(self, count: int) -> range:
        """The indices 0 .. count - 1 that are this rank's: every `world_size`-th, from `rank` on."""
        return range(self.rank, count, self.world_size)
