"""How many workers fit: whole GPUs, parts of one, and CPUs."""

import pytest

from renege_ray.cluster.resources import Node, capacity, worker_shape
from renege_ray.config import ClusterConfig
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
