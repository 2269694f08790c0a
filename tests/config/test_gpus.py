import pytest

from renege_ray.config.gpus import GPUS, gpu_of
from renege_ray.errors import UserError


@pytest.mark.parametrize("name", ["rtx4090", "RTX 4090", "rtx-4090", "RTX_4090"])
def test_a_gpu_by_its_name(name: str) -> None:
    assert gpu_of(name).name == "RTX 4090"


def test_a_gpu_that_is_not_known() -> None:
    with pytest.raises(
        UserError, match=r"^--gpu: 'h1000' is not in the table; did you mean h100\? known: t4, "
    ) as raised:
        gpu_of("h1000")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"'abacus' is not in the table; known: "):
        gpu_of("abacus")


def test_peaks_are_dense_and_half_precision_is_the_faster() -> None:
    assert all(1.9 < gpu.peak / gpu.float32_peak < 30 for gpu in GPUS.values())
    assert GPUS["h100"].peak == 989 and GPUS["a100"].peak == 312
