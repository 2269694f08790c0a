"""How many workers fit where, and how large a share of a machine each gets: arithmetic on the cluster's
nodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from renege_ray.config.jobs import ClusterConfig
from renege_ray.errors import UserError

# A worker holds its own copy of the models and its own Python: below a quarter of a core it spends more on
# being there than on its share of the batch, and "more workers" is no longer what is wanted.
SMALLEST_AUTOMATIC_SHARE = 0.25
# Of a trial's process that only starts workers and waits for them. Ray takes no 0 for it.
DRIVER_CPUS = 0.01

Backend = Literal["gloo"] | None
"""Of torch.distributed; None: as Ray Train chooses, which is NCCL on GPUs."""


@dataclass(frozen=True)
class Node:
    """What one machine of the cluster offers to Ray."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class WorkerShape:
    """How many workers there are, and what each of them reserves.

    threads: torch threads on the CPU, at least 1. Ray would set the threads from the CPUs by itself, but as
        an environment variable that a user's own setting silently replaces; here the number is set in the
        worker, since results depend on it in the last bits.
    """

    min_workers: int
    max_workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Torch threads of a worker on the CPU."""
        return max(1, math.floor(self.cpus))

    @property
    def elastic(self) -> bool:
        """Whether the group shrinks and grows with the cluster."""
        return self.min_workers < self.max_workers

    @property
    def backend(self) -> Backend:
        """What the workers sum by."""
        return backend_for(self.gpus)

    def resources(self) -> dict[str, float]:
        """Ray's `resources_per_worker`."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def worker_shape(config: ClusterConfig, nodes: Sequence[Node], *, autoscaled: bool = False) -> WorkerShape:
    """The shape of a worker group on these nodes.

    `cpus_per_worker` auto is the largest equal share that lets all workers fit, whole cores where there are
    enough and else a half or a quarter of one. Workers that do not fit a cluster that cannot grow would wait
    for ever, so they are refused here. Elastic groups have to fit with their smallest number.

    Raises:
        UserError: naming the workers asked for and the room there is.
    """
    low, high = config.worker_range
    gpus = _gpus(config, nodes)
    if gpus and not autoscaled and not any(node.gpus for node in nodes):
        raise UserError("cluster.use_gpu: true, but there is no GPU; leave it out, or give false")
    if config.cpus_per_worker != "auto":
        cpus = float(config.cpus_per_worker)
    else:
        cpus = next((share for n in range(high, low - 1, -1) if (share := _largest_share(nodes, n, gpus))), 0.0)
    room = capacity(nodes, cpus or SMALLEST_AUTOMATIC_SHARE, gpus)
    if room < low and not autoscaled:
        raise _no_room("cluster.num_workers", "--num-workers", low, cpus, gpus, nodes, room)
    return WorkerShape(low, high, cpus or 1.0, gpus)


@dataclass(frozen=True)
class TrialShape:
    """How many trials of a sweep run at the same time, and what each of them reserves."""

    concurrent: int
    workers: int
    """Of one trial."""
    cpus: float
    """Of one worker, as `gpus` is."""
    gpus: float

    @property
    def threads(self) -> int:
        """Torch threads of a worker on the CPU."""
        return WorkerShape(1, 1, self.cpus, self.gpus).threads

    @property
    def backend(self) -> Backend:
        """What the workers of a trial sum by."""
        return backend_for(self.gpus)

    def worker_resources(self) -> dict[str, float]:
        """What a worker of a trial reserves in Ray. Where there are several, the process that starts them has its
        share of theirs: added to it, a trial that fills the cluster would wait for itself.
        """
        cpus = self.cpus if self.workers == 1 else self.cpus - DRIVER_CPUS
        return {"CPU": cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def trial_resources(self) -> dict[str, float]:
        """What the trial itself reserves in Ray: its only worker is its own process."""
        return self.worker_resources() if self.workers == 1 else {"CPU": DRIVER_CPUS}


def trial_shape(
    config: ClusterConfig,
    workers: int,
    max_concurrent: Literal["auto"] | int,
    nodes: Sequence[Node],
    *,
    autoscaled: bool = False,
) -> TrialShape:
    """The shape of a sweep's trials on these nodes.

    `max_concurrent` auto is a worker for every GPU (or the part of one that `gpus_per_worker` says), without GPUs for
    every core, or as `cpus_per_worker` says. A number is a limit: fewer run where fewer fit.

    Raises:
        UserError: not even one trial fits a cluster that cannot grow; it would wait for ever.
    """
    gpus = _gpus(config, nodes)
    given = None if config.cpus_per_worker == "auto" else float(config.cpus_per_worker)
    room = capacity(nodes, given or (SMALLEST_AUTOMATIC_SHARE if gpus else 1.0), gpus)
    concurrent = max(1, room // workers)
    if max_concurrent != "auto":
        concurrent = max_concurrent if given is None else min(max_concurrent, concurrent)
    wanted = range(concurrent, 0, -1)
    cpus = given or next((share for n in wanted if (share := _largest_share(nodes, n * workers, gpus))), 0.0)
    room = capacity(nodes, cpus or SMALLEST_AUTOMATIC_SHARE, gpus)
    if room < workers and not autoscaled:
        raise _no_room("sweep.workers_per_trial", "--workers-per-trial", workers, cpus, gpus, nodes, room)
    return TrialShape(max(1, min(concurrent, room // workers)), workers, cpus or 1.0, gpus)


def _no_room(
    field: str, flag: str, workers: int, cpus: float, gpus: float, nodes: Sequence[Node], room: int
) -> UserError:
    total = f"{sum(node.cpus for node in nodes):g} CPUs"
    needs = f"{cpus or SMALLEST_AUTOMATIC_SHARE:g} CPUs"
    if gpus:
        total += f" and {sum(node.gpus for node in nodes):g} GPUs"
        needs += f" and {gpus:g} GPU"
    remedy = f"use {flag} {room} or fewer" if room else "free some of the machine"
    return UserError(
        f"{field}: {workers} workers of {needs} each do not fit the cluster of {total} with "
        f"room for {room}; {remedy}, or a smaller cluster.cpus_per_worker"
    )


def backend_for(gpus: float) -> Backend:
    """What workers of so many GPUs each sum by. NCCL refuses two processes on one GPU; what is summed is one embedding,
    and comes from the CPU.
    """
    return "gloo" if 0 < gpus < 1 else None


def capacity(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many workers of this size fit; a worker is never split between nodes."""
    return sum(min(math.floor(node.cpus / cpus + 1e-9), _gpu_places(node, gpus)) for node in nodes)


def _gpu_places(node: Node, gpus: float) -> int:
    """How many workers the GPUs of a node are enough for; a worker with a part of a GPU has it on one GPU."""
    if gpus == 0:
        return 1 << 30
    if gpus < 1:
        return math.floor(node.gpus) * math.floor(1 / gpus + 1e-9)
    return math.floor(node.gpus / gpus)


def _gpus(config: ClusterConfig, nodes: Sequence[Node]) -> float:
    wanted = any(node.gpus >= 1 for node in nodes) if config.use_gpu == "auto" else config.use_gpu
    return config.gpus_per_worker if wanted else 0.0


def _largest_share(nodes: Sequence[Node], workers: int, gpus: float) -> float:
    """The most CPUs a worker can have so that all of `workers` fit; 0 if they do not fit at all."""
    whole = range(int(max((node.cpus for node in nodes), default=0)), 0, -1)
    for cpus in [*map(float, whole), 0.5, SMALLEST_AUTOMATIC_SHARE]:
        if capacity(nodes, cpus, gpus) >= workers:
            return cpus
    return 0.0
