"""Decisions by what hardware says of itself, for hardware that is not here."""

import pytest
import torch

from renege_ray.models.hardware import choose_without_cuda, fastest_dtype, trouble_with
from renege_ray.models.load import choose_dtype
from renege_ray.rewards.load import choose_tower_dtype

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("capability", "name", "expected"),
    [
        ((5, 0), "GeForce GTX 750 Ti", FP32),
        ((5, 2), "Tesla M40", FP32),
        ((6, 0), "Tesla P100-PCIE-16GB", FP32),
        ((6, 1), "NVIDIA GeForce GTX 1080 Ti", FP32),
        ((7, 0), "Tesla V100-SXM2-32GB", FP16),
        ((7, 2), "Xavier", FP16),
        ((7, 5), "Tesla T4", FP16),
        ((7, 5), "NVIDIA GeForce RTX 2080 Ti", FP16),
        ((7, 5), "NVIDIA GeForce GTX 1660 SUPER", FP32),
        ((8, 0), "NVIDIA A100-SXM4-80GB", BF16),
        ((8, 6), "NVIDIA A10", BF16),
        ((8, 7), "Orin", BF16),
        ((8, 9), "NVIDIA GeForce RTX 4090", BF16),
        ((9, 0), "NVIDIA H100 80GB HBM3", BF16),
        ((10, 0), "NVIDIA B200", BF16),
        ((12, 0), "NVIDIA GeForce RTX 5090", BF16),
        (None, "AMD Instinct MI300X", BF16),
    ],
)
def test_the_type_for_each_compute_capability(
    capability: tuple[int, int] | None, name: str, expected: torch.dtype
) -> None:
    assert fastest_dtype("cuda", capability, name) == expected


@pytest.mark.parametrize("device_type", ["cpu", "mps", "xpu"])
def test_no_other_device_is_trusted_with_less_than_float32(device_type: str) -> None:
    assert fastest_dtype(device_type) == FP32
    assert choose_dtype("auto", torch.device(device_type)) == FP32


def test_a_reward_is_not_float16_unless_its_model_is_told_so() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) == FP16
    assert [choose_tower_dtype(name, cpu) for name in ("auto", "float16", "bfloat16")] == [FP32, FP32, BF16]


def test_apples_gpu_is_taken_where_it_is_there_and_works() -> None:
    assert choose_without_cuda(built=True, available=True, trouble=lambda device: "") == (torch.device("mps"), "")


def test_apples_gpu_that_does_not_work_is_said() -> None:
    device, said = choose_without_cuda(built=True, available=True, trouble=lambda device: f"{device} is broken")
    assert device == torch.device("cpu")
    assert said == "Apple's GPU (MPS) is not used: mps is broken; computing on the CPU"
    device, said = choose_without_cuda(built=True, available=False, trouble=lambda device: "")
    assert device == torch.device("cpu") and "macOS" in said and "\n" not in said


def test_where_no_gpu_could_be_expected_nothing_is_said() -> None:
    assert choose_without_cuda(built=False, available=False, trouble=trouble_with) == (torch.device("cpu"), "")


def test_the_small_computation() -> None:
    assert trouble_with(torch.device("cpu")) == ""
    missing = trouble_with(torch.device("meta"))  # a device that cannot give a result back
    assert missing and "\n" not in missing
