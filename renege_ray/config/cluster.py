"""The settings of the workers, a section of the configuration."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from renege_ray.config.types import CountOrZero, Name, Section


class ClusterConfig(Section):
    """Workers. None of this changes the result, but for the order of sums."""

    num_workers: str = Field("1", description="N, or MIN-MAX for a group that shrinks and grows with the cluster")
    use_gpu: Literal["auto"] | bool = Field("auto", description="a GPU for each worker; auto: where there are any")
    cpus_per_worker: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="CPU cores that a worker reserves; auto is an equal share"
    )
    gpus_per_worker: float = Field(1.0, gt=0, description="GPUs that a worker reserves; below 1, several share one")
    max_failures: CountOrZero = Field(3, description="worker failures after which the run gives up")
    storage_path: Name | None = Field(
        None,
        description="folder or URI that all nodes share, for checkpoints; needed with several nodes only",
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _number_or_range(cls, value: object) -> str:
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text, re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if match and high < low:
            raise ValueError(f"cluster.num_workers: {text} is reversed; give MIN-MAX, such as {high or 1}-{low}")
        if low < 1:
            zero = "0 workers do nothing" if match else f"{value!r} is not a number of workers"
            raise ValueError(f"cluster.num_workers: {zero}; give N or MIN-MAX from 1 up, such as 2 or 1-4")
        return str(low) if low == high else f"{low}-{high}"

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers."""
        low, _, high = self.num_workers.partition("-")
        return int(low), int(high or low)
