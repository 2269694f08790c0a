"""Workers that take unlike times to load: the collective's timeout is no matter of that."""

import time
from typing import Any

import pytest


def load_slowly_on_one(parameters: dict[str, Any]) -> int:
    """For Ray Train: rank 1 loads for longer than a sum may take."""
    from renege_ray.cluster.training.worker_group import load_together, this_worker

    workers = this_worker()

    def load() -> int:
        time.sleep(parameters["seconds"] * workers.rank)
        return 7

    return int(load_together(load, workers))


@pytest.mark.ray
def test_a_rank_that_loads_longer_than_the_timeout_of_a_sum(ray_cluster: str, tmp_path: Any) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        load_slowly_on_one,
        train_loop_config={"seconds": 8.0},
        torch_config=TorchConfig(backend="gloo", timeout_s=4),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path)),
    )
    assert trainer.fit().return_value == 7
