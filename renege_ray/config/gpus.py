"""GPUs that a dry run can name, and what their vendor says they reach."""

from dataclasses import dataclass

from renege_ray.config.faults import did_you_mean
from renege_ray.errors import UserError

ASSUMED_EFFICIENCY = 0.4  # of the peak, where nothing has been measured


@dataclass(frozen=True)
class Gpu:
    """One GPU, by NVIDIA's data sheet."""

    name: str
    capability: tuple[int, int]
    peak: float
    """TFLOP/s of bfloat16 matrices (float16 before 8.0) on tensor cores, summed in float32; dense: data sheets print
    twice as much, for matrices that are half zeros."""
    float32_peak: float
    """TFLOP/s of float32, without tensor cores."""
    measured: float | None = None
    """The share of `peak` that a whole training of this package has reached on it; None: none has been measured."""


_ALL = (
    Gpu("T4", (7, 5), 65, 8.1),
    Gpu("V100", (7, 0), 125, 15.7),
    Gpu("A10", (8, 6), 125, 31.2),
    Gpu("L4", (8, 9), 121, 30.3),
    Gpu("A100", (8, 0), 312, 19.5),
    Gpu("RTX 3090", (8, 6), 71, 35.6),
    Gpu("RTX 4090", (8, 9), 165, 82.6),
    Gpu("L40S", (8, 9), 362, 91.6),
    Gpu("H100", (9, 0), 989, 67),
    Gpu("H200", (9, 0), 989, 67),
    Gpu("B200", (10, 0), 2250, 80),
)
GPUS = {gpu.name.lower().replace(" ", ""): gpu for gpu in _ALL}


def gpu_of(name: str) -> Gpu:
    """The GPU that a name means; capitals, blanks and hyphens do not matter.

    Raises:
        UserError: it is not in the table.
    """
    short = name.lower().replace(" ", "").replace("-", "").replace("_", "")
    if short not in GPUS:
        raise UserError(f"--gpu: {name!r} is not in the table; {did_you_mean(short, GPUS)}known: {', '.join(GPUS)}")
    return GPUS[short]
