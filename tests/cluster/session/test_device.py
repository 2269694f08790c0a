"""The GPU that Ray has given, without one."""

import pytest
import ray
import torch

from renege_ray.cluster.session.device import worker_device
from renege_ray.config.jobs import ClusterConfig


@pytest.mark.parametrize(
    ("own", "visible", "expected"),
    [
        ([], "", "cpu"),
        ([2], "2", "cuda:0"),  # Ray Data, Ray Tune: a process sees its own alone
        ([2], "0,1,2,3", "cuda:2"),  # Ray Train: it sees those of all workers of the machine
        ([6, 4], "4,5,6,7", "cuda:0"),
        (["GPU-b"], "GPU-a,GPU-b", "cuda:1"),
        ([3], None, "cuda:3"),  # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES
    ],
)
def test_the_gpu_that_ray_has_given_is_the_current_one(
    monkeypatch: pytest.MonkeyPatch, own: list[int | str], visible: str | None, expected: str
) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: own)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker_device(ClusterConfig()) == torch.device(expected)
    assert current == [torch.device(expected)] * bool(own)


def test_a_part_of_a_gpu_is_all_that_a_process_may_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[float, torch.device]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: held.append((share, device))
    )
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [1])
    for share in (1.0, 2.0, 0.33):
        worker_device(ClusterConfig(gpus_per_worker=share))
    assert held == [(0.33, torch.device("cuda:1"))]
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
    assert worker_device(ClusterConfig(gpus_per_worker=0.5, use_gpu=False)) == torch.device("cpu")
    assert len(held) == 1
