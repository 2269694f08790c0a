"""One Ray for all tests that need it: four workers of one logical CPU each fit, on however few cores."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a running cluster; jobs in this process use it, others by RAY_ADDRESS."""
    from renege_ray.cluster.session import ray_session  # first: it sets up Ray's environment

    ray = ray_session.ray
    context = ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        logging_level="error",
        log_to_driver=False,
    )
    yield context.address_info["address"]
    ray.shutdown()
