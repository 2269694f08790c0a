"""How many workers fit: whole GPUs, parts of one, and CPUs."""

from typing import Any

import pytest

from renege_ray.cluster.session.resources import Node, capacity, trial_shape, worker_shape
from renege_ray.config.jobs import ClusterConfig
from renege_ray.errors import UserError


@pytest.mark.parametrize(
    ("cpus", "gpus", "fit"), [(1, 0, 8), (1, 1, 2), (1, 2, 1), (1, 0.5, 4), (1, 0.4, 4), (1, 0.3, 6), (4, 0.25, 2)]
)
def test_capacity_of_a_node_of_8_cpus_and_2_gpus(cpus: float, gpus: float, fit: int) -> None:
    assert capacity([Node(8, 2)], cpus, gpus) == fit


def test_workers_may_share_a_gpu() -> None:
    shared = ClusterConfig(num_workers="1-8", gpus_per_worker=0.25)
    shape = worker_shape(shared, [Node(8, 2)])
    assert shape.resources() == {"CPU": 1.0, "GPU": 0.25} and (shape.min_workers, shape.max_workers) == (1, 8)
    with pytest.raises(UserError, match=r"use_gpu: true, but there is no GPU"):
        worker_shape(ClusterConfig(use_gpu=True), [Node(8)])
    assert worker_shape(ClusterConfig(use_gpu=True), [Node(8)], autoscaled=True).gpus == 1
    with pytest.raises(UserError, match=r"need|of .*0.6 GPU"):
        worker_shape(ClusterConfig(num_workers="3", gpus_per_worker=0.6), [Node(8, 2)])


@pytest.mark.parametrize(
    ("gpus_per_worker", "node", "backend"),
    [(0.5, Node(8, 1), "gloo"), (0.33, Node(8, 2), "gloo"), (1.0, Node(8, 2), None), (2.0, Node(8, 2), None),
     (0.5, Node(8), None)],
)  # fmt: skip
def test_workers_on_one_gpu_sum_by_what_allows_it(gpus_per_worker: float, node: Node, backend: str | None) -> None:
    config = ClusterConfig(gpus_per_worker=gpus_per_worker)
    assert worker_shape(config, [node]).backend == backend
    assert trial_shape(config, 1, "auto", [node]).backend == backend


@pytest.mark.parametrize(
    ("cluster", "workers", "max_concurrent", "node", "concurrent", "cpus"),
    [
        ({}, 1, "auto", Node(2), 2, 1.0),  # a trial for each core
        ({}, 1, 1, Node(2), 1, 2.0),
        ({}, 1, 3, Node(2), 3, 0.5),
        ({}, 2, "auto", Node(2), 1, 1.0),
        ({}, 2, "auto", Node(1), 1, 0.5),
        ({}, 1, "auto", Node(16, 4), 4, 4.0),  # a trial for each GPU
        ({"gpus_per_worker": 0.5}, 2, "auto", Node(16, 4), 4, 2.0),
        ({"cpus_per_worker": 4}, 1, 9, Node(16), 4, 4.0),
    ],
)
def test_trials_fill_the_machine(
    cluster: dict[str, float], workers: int, max_concurrent: Any, node: Node, concurrent: int, cpus: float
) -> None:
    """All that runs at once fits, drivers included: otherwise trials would wait for each other for ever."""
    shape = trial_shape(ClusterConfig(**cluster), workers, max_concurrent, [node])
    assert (shape.concurrent, shape.cpus) == (concurrent, cpus)
    of_a_trial = shape.worker_resources()["CPU"] * workers
    if workers > 1:
        of_a_trial += shape.trial_resources()["CPU"]
    assert concurrent * of_a_trial <= node.cpus + 1e-9


@pytest.mark.parametrize(
    ("cluster", "workers"), [({}, 9), ({"cpus_per_worker": 3}, 1), ({"use_gpu": True}, 1), ({"gpus_per_worker": 3}, 1)]
)
def test_trials_that_never_fit_are_refused(cluster: dict[str, float], workers: int) -> None:
    node = Node(2, 2) if "gpus_per_worker" in cluster else Node(2)
    with pytest.raises(UserError, match=r"sweep\.workers_per_trial: .* do not fit the cluster"):
        trial_shape(ClusterConfig(**cluster), workers, "auto", [node])
