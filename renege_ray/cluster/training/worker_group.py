"""A group of Ray Train workers: their sum, and what all of them have or none."""

from collections.abc import Callable
from typing import TypeVar

import ray.train
import torch
import torch.distributed
from ray.train.collective import barrier, broadcast_from_rank_zero
from torch import Tensor

from renege_ray.cluster.training.checkpoints import CheckpointStore
from renege_ray.errors import UserError, full_line, is_full
from renege_ray.sampling.workers import Workers
from renege_ray.training.state import TrainingState

T = TypeVar("T")


def load_together(load: Callable[[], T], workers: Workers) -> T | str:
    """What `load` gives on this worker, or why some worker could not load its own (`load` raised UserError)."""
    problem, loaded = "", None
    try:
        loaded = load()
    except UserError as error:
        problem = str(error)
    workers.meet()
    # A rank that left alone would leave the others waiting for it in their next sum.
    failed = int(workers.all_sum(torch.tensor([float(bool(problem))], dtype=torch.float64)))
    if failed or loaded is None:
        return problem or f"{failed} of {workers.world_size} workers could not load the model (see their logs)"
    return loaded


def final_reason(error: Exception) -> str:
    """Why no restart would help against an error of a worker; "" where one might."""
    if isinstance(error, UserError):
        return str(error)
    return full_line(error) if is_full(error) else ""


def this_worker() -> Workers:
    """The place of this process in its Ray Train group."""
    context = ray.train.get_context()
    # Ray's barrier knows no timeout; in a sum, torch counts from when the first rank has come.
    return Workers(context.get_world_rank(), context.get_world_size(), all_sum, barrier)


def checkpoint_of_rank_zero(store: CheckpointStore, workers: Workers) -> TrainingState | None:
    """The checkpoint that the whole group goes on from: the newest that rank 0 sees, or None."""
    newest = store.newest_intact() if workers.rank == 0 else None
    name = broadcast_from_rank_zero(newest[0] if newest else "")
    return store.load(name) if name else None


def all_sum(values: Tensor) -> Tensor:
    """The sum over the worker group, on the CPU. NCCL moves tensors of the accelerator only: of the current GPU, which
    is the worker's own.
    """
    moved = values.cuda() if torch.distributed.get_backend() == "nccl" else values.clone()
    torch.distributed.all_reduce(moved)
    return moved.to(values.device)


def first_cause(error: Exception) -> str:
    """One line of the first worker's exception, or of Ray Train's own where no worker is to blame."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[-1].strip()
