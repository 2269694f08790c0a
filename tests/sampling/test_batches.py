from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from renege_ray.errors import UserError
from renege_ray.models.families.pixart_alpha import PixArtAlpha
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.sampling.batches import MemoryPlan, available_memory, plan_memory, together_or_alone

GIB = 2**30


def model(family: type[FrozenPipeline], side: int, device: str = "cuda") -> Any:
    """The sizes of a real model without its weights."""
    shaped = family.__new__(family)
    shaped.dtype, shaped.device = torch.bfloat16, torch.device(device)
    shaped._denoiser = SimpleNamespace(config=SimpleNamespace(in_channels=4))
    shaped._latent_size = (side, side)
    return shaped


SD15, SD21, SDXL, PIXART = (StableDiffusion, 64), (StableDiffusion, 96), (StableDiffusionXL, 128), (PixArtAlpha, 64)


@pytest.mark.parametrize(
    ("memory", "of", "weights", "expected"),
    [
        # weights: denoiser, VAE, text encoders, and 2 GiB for the reward
        ("16gb", SD15, 4.0, MemoryPlan(3, saving=True)),
        ("24gb", SD15, 4.0, MemoryPlan(5, saving=True)),
        ("80gb", SD15, 4.0, MemoryPlan(13, saving=False)),
        ("24gb", SD21, 4.5, MemoryPlan(2, saving=True)),
        ("16gb", SDXL, 8.5, MemoryPlan(1, saving=True)),
        ("24gb", SDXL, 8.5, MemoryPlan(1, saving=True)),
        ("80gb", SDXL, 8.5, MemoryPlan(6, saving=True)),
        ("24gb", PIXART, 12.2, MemoryPlan(2, saving=True)),
        ("80gb", PIXART, 12.2, MemoryPlan(11, saving=False)),
    ],
)
def test_what_fits(monkeypatch: pytest.MonkeyPatch, memory: str, of: Any, weights: float, expected: MemoryPlan) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(weights * GIB))
    assert plan_memory(memory, "auto", model(*of)) == expected


def test_a_size_that_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)
    for size, saving in ((1, False), (3, False), (4, True), (50, True)):
        assert plan_memory("24gb", size, model(*SD15)) == MemoryPlan(size, saving=saving)


def test_auto_is_what_is_free_and_no_limit_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * GIB, 80 * GIB))
    assert available_memory("auto", torch.device("cuda")) == 38.5
    assert available_memory("auto", torch.device("cpu")) is None
    assert available_memory("16gb", torch.device("cpu")) == pytest.approx(16e9 / GIB - 1.5)
    assert plan_memory("auto", "auto", model(*SD15, device="cpu")) == MemoryPlan(None, saving=False)


def test_float32_takes_twice_as_much_and_small_images_little() -> None:
    full = model(*SD15)
    full.dtype = torch.float32
    assert full.gradient_memory(saving=False) == 2 * model(*SD15).gradient_memory(saving=False)
    assert model(StableDiffusion, 8).gradient_memory(saving=False) == model(*SD15).gradient_memory(saving=False) / 64


def test_an_item_that_raises_spoils_no_other() -> None:
    seen: list[int] = []

    def inverse(items: Sequence[int]) -> list[float]:
        seen.append(len(items))
        if 5 in items:
            raise UserError("five")
        if 4 in items:
            raise KeyError("four")
        return [1 / item for item in items]

    def compute(*items: int, fatal: tuple[type[Exception], ...] = ()) -> list[float | tuple[int, str]]:
        seen.clear()
        return together_or_alone(items, inverse, lambda item, reason: (item, reason), fatal)

    assert compute(1, 2) == [1, 0.5] and seen == [2]
    assert compute(2, 0, 1) == [0.5, (0, "ZeroDivisionError: division by zero"), 1] and seen == [3, 1, 1, 1]
    assert compute(4) == [(4, "KeyError: 'four'")] and seen == [1]
    assert compute() == [] and seen == []
    for items, fatal, error in (((5, 1), (), UserError), ((1, 4), (LookupError,), KeyError)):
        with pytest.raises(error):
            compute(*items, fatal=fatal)
        assert seen == [2]
