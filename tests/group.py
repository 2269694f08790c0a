"""A worker group of threads: every rank runs the same function, sums are made in the order of the ranks."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from renege_ray.sampling.workers import Workers

T = TypeVar("T")


def run_group(world_size: int, work: Callable[[Workers], T]) -> list[T]:
    """What `work` returned on each rank; the first exception of any rank is raised."""
    barrier = threading.Barrier(world_size)
    slots: list[Tensor | None] = [None] * world_size
    results: list[T | None] = [None] * world_size
    failures: list[BaseException] = []

    def all_sum(rank: int, values: Tensor) -> Tensor:
        slots[rank] = values.clone()
        barrier.wait(timeout=120)
        total = torch.stack([slot for slot in slots if slot is not None]).sum(dim=0)
        barrier.wait(timeout=120)
        return total

    def target(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            results[rank] = work(Workers(rank, world_size, lambda values: all_sum(rank, values)))
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results  # type: ignore[return-value]
