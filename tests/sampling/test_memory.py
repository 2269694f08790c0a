"""The plan of the gradient step's memory, at the sizes of real models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from renege_ray.models.families.pixart_alpha import PixArtAlpha
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.rewards.catalogue import REWARDS
from renege_ray.sampling.memory import available_memory, plan_memory

GIB = 2**30


def model(family: type[FrozenPipeline], side: int, device: str = "cuda") -> Any:
    """The sizes of a real model without its weights."""
    shaped = family.__new__(family)
    shaped.dtype, shaped.device = torch.bfloat16, torch.device(device)
    shaped._denoiser = SimpleNamespace(config=SimpleNamespace(in_channels=4))
    shaped._vae = SimpleNamespace(dtype=torch.bfloat16)
    shaped._latent_size = (side, side)
    return shaped


SD15, SD21, SDXL, PIXART = (StableDiffusion, 64), (StableDiffusion, 96), (StableDiffusionXL, 128), (PixArtAlpha, 64)


def use(
    monkeypatch: pytest.MonkeyPatch,
    *,
    weights: float,
    cached: float = 0.0,
    others: float = 0.0,
    total: float = 80.0,
    share: float = 1.0,
) -> None:
    """A GPU with so many GiB of live tensors, of PyTorch's own cache, and of other processes; and the share of it that
    this process is held to.
    """
    free = int((total - weights - cached - others) * GIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, int(total * GIB)))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(weights * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int((weights + cached) * GIB))


@pytest.mark.parametrize(
    ("memory", "of", "weights"),
    [
        (memory, of, weights)  # denoiser, VAE, and 2 GiB for the reward
        for of, weights in ((SD15, 4.0), (SD21, 4.5), (PIXART, 3.5), (SDXL, 8.5))
        for memory in ("16gb", "24gb", "80gb")
    ],
)
def test_a_plan_fits_and_uses_what_there_is(
    monkeypatch: pytest.MonkeyPatch, memory: str, of: Any, weights: float
) -> None:
    use(monkeypatch, weights=weights)
    plan = plan_memory(memory, "auto", model(*of))
    samples = plan.samples()
    assert plan.needed(samples) <= plan.available or samples == 1
    assert plan.needed(samples + 1) > plan.available
    assert plan.decoded_at_once is not None and plan.decoded_at_once <= max(1, samples)


def test_a_small_card_computes_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is affine in the batch: multiplying the first sample's cost, 24 GB held four samples of SD1.5."""
    use(monkeypatch, weights=4.0)
    plan = plan_memory("24gb", "auto", model(*SD15))
    assert plan.samples() >= 12 and not plan.saving


def test_a_size_that_was_given_decides_whether_activations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, weights=4.0)
    saving = [plan_memory("24gb", size, model(*SD15)).saving for size in (1, 4, 16, 64)]
    assert saving == sorted(saving) and saving[0] is False and saving[-1] is True


def test_auto_is_what_is_free_and_no_limit_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, weights=10.0)
    assert available_memory("auto", torch.device("cuda")) == 68.5
    assert available_memory("auto", torch.device("cpu")) is None
    assert available_memory("16gb", torch.device("cpu")) == pytest.approx(16e9 / GIB - 1.5)
    plan = plan_memory("auto", "auto", model(*SD15, device="cpu"))
    assert plan.samples() > 10**6 and plan.decoded_at_once is None and not plan.saving


def test_a_plan_is_the_same_after_much_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch keeps in its cache counts as used by the driver's figures, and is free all the same."""
    plans = []
    for cached in (0.0, 30.0, 65.0):
        use(monkeypatch, weights=10.0, cached=cached)
        plans.append(plan_memory("auto", "auto", model(*SD15)))
    assert plans[0] == plans[1] == plans[2]


def test_a_process_plans_for_its_share_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    use(monkeypatch, weights=10.0)
    assert available_memory("auto", cuda, share=0.5) == 80 * 0.5 - 10 - 1.5
    for others in (0.0, 35.0):  # whoever comes first would have taken all
        use(monkeypatch, weights=10.0, cached=5.0, others=others, share=0.5)
        assert available_memory("auto", cuda) == 80 * 0.5 - 10 - 1.5
    use(monkeypatch, weights=10.0, others=50.0, share=0.5)  # another one has more than its share
    assert available_memory("auto", cuda) == 80 - 50 - 10 - 1.5


def test_a_size_that_is_named_is_the_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--cluster.gpus-per-worker 0.33 --memory 24gb`, as docs/cluster.md has it; and no more than it is held to."""
    cuda = torch.device("cuda")
    use(monkeypatch, weights=10.0, share=0.33)
    assert available_memory("24gb", cuda) == pytest.approx(24e9 / GIB - 10 - 1.5)
    assert available_memory("80gb", cuda) == pytest.approx(80 * 0.33 - 10 - 1.5)


def test_float32_takes_twice_as_much_and_small_images_little() -> None:
    full = model(*SD15)
    full.dtype = full._vae.dtype = torch.float32
    half, small = (model(*SD15).gradient_memory(saving=False), model(StableDiffusion, 8).gradient_memory(saving=False))
    assert full.gradient_memory(saving=False).denoise == 2 * half.denoise
    assert full.gradient_memory(saving=False).decode == 2 * half.decode
    assert small.denoise == half.denoise / 64 and small.decode == half.decode / 64


def test_a_large_reward_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, weights=20.0)
    small, large = (plan_memory("80gb", 4, model(*SD15), ["hpsv2", other]) for other in ("clip", "hpsv3"))
    assert large.fixed - small.fixed == pytest.approx(8 * (REWARDS["hpsv3"].activations - 0.3))
