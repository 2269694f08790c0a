import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from renege_ray.method import make_schedule, predict_x0, reward_of_prediction, rollout
from renege_ray.method.guidance import Guidance
from renege_ray.models.families.stable_diffusion import StableDiffusion

W = 3.0
PROMPTS = ("a red circle", "b")


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "naive.py"
    spec = importlib.util.spec_from_file_location("naive", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Smooth, different for each pixel and each prompt."""
    pattern = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view_as(images[0])
    lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=images.dtype)
    return (images.square() * pattern).flatten(1).sum(1) * (1 + lengths)


@pytest.fixture
def double_model(tiny_pipeline: Callable[..., StableDiffusionPipeline]) -> StableDiffusion:
    """A tiny model in float64 whose images stay clear of the clamp."""
    pipeline = tiny_pipeline(width=4, prediction_type="v_prediction")
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.mul_(0.1)
    return StableDiffusion(pipeline, "tiny", dtype=torch.float64)


def objective_of(model: StableDiffusion, step: int, steps: int = 8) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """n -> rewards (2,) at one step of a rollout, and the null embedding, in float64."""
    schedule = model.schedule(steps)
    n, c = model.encode_prompts([""]).double(), model.encode_prompts(PROMPTS).double()
    x_T = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        x_t = rollout(model.denoise, x_T, c, n, schedule, Guidance(W), stop=step).latents

    def rewards(negative: Tensor) -> Tensor:
        return reward_of_prediction(
            model.denoise, model.decode, reward, x_t, step, PROMPTS, c, negative, schedule, Guidance(W)
        )

    return rewards, n


@pytest.mark.parametrize("step", [2, 7])
@pytest.mark.slow
def test_the_gradient_is_right(double_model: StableDiffusion, step: int) -> None:
    rewards, n = objective_of(double_model, step)
    torch.autograd.gradcheck(rewards, n.clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_every_token_gets_a_gradient_and_nothing_else_does(double_model: StableDiffusion) -> None:
    rewards, n = objective_of(double_model, 5)
    leaf = n.clone().requires_grad_()
    rewards(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert (leaf.grad.abs().amax(dim=(0, 2)) > 0).all()
    pipeline = double_model.pipeline
    weights = [p for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in m.parameters()]
    assert weights and all(p.grad is None and not p.requires_grad for p in weights)


def test_the_gradient_of_a_batch_is_the_sum_over_its_samples(double_model: StableDiffusion) -> None:
    rewards, n = objective_of(double_model, 5)
    one = n.clone().requires_grad_()
    each = n.expand(2, -1, -1).clone().requires_grad_()
    (shared,) = torch.autograd.grad(rewards(one).sum(), one)
    (separate,) = torch.autograd.grad(rewards(each).sum(), each)
    torch.testing.assert_close(shared, separate.sum(0, keepdim=True))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("w", [1.0, 3.0, 7.5])
def test_analytic_gradient_of_a_linear_denoiser(prediction: str, w: float) -> None:
    """e(x, t, p) = x / 2 + A p, J = <r, x_0>: dJ/dn = (1 - w) dx_0/de A^T r."""
    g = torch.Generator().manual_seed(0)
    B, L, D, C, H = 2, 3, 5, 4, 2
    A = torch.randn(C * H * H, L * D, generator=g, dtype=torch.float64)
    r = torch.randn(B, C, H, H, generator=g, dtype=torch.float64)
    x, c, n = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((B, C, H, H), (B, L, D), (1, L, D)))
    schedule = make_schedule(
        torch.linspace(0.999, 0.01, 100),
        10,
        prediction_type=prediction,
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
    )

    def denoiser(latents: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        return latents / 2 + (embeds.flatten(1) @ A.T).view_as(latents)

    n.requires_grad_()
    x.requires_grad_()
    x0 = predict_x0(denoiser, x, 4, c, n, schedule, Guidance(w))
    gradient, to_x = torch.autograd.grad((r * x0).sum(), (n, x), allow_unused=True)
    signal, sigma = schedule.signal[4], schedule.sigma[4]
    dx0_de = {"epsilon": -sigma / signal, "v_prediction": -sigma, "sample": torch.ones(())}
    expected = (1 - w) * dx0_de[prediction] * (r.flatten(1) @ A).sum(0).view(1, L, D)
    torch.testing.assert_close(gradient, expected)
    assert to_x is None  # the gradient stops at x_t


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_samples_may_be_at_steps_of_their_own(
    tiny_pipeline: Callable[..., StableDiffusionPipeline], prediction: str
) -> None:
    """In value and gradient as if each sample had been alone, at its own step."""
    model = StableDiffusion(tiny_pipeline(prediction_type=prediction), "tiny")
    schedule, steps = model.schedule(8), (5, 2)
    c, x_t = model.encode_prompts(PROMPTS), torch.randn(2, *model.latent_shape)
    n = model.encode_prompts(["", "blurry"]).requires_grad_()

    def predicted(rows: slice, step: int | Tensor) -> Tensor:
        return predict_x0(model.denoise, x_t[rows], step, c[rows], n[rows], schedule, Guidance(W))

    together = predicted(slice(None), torch.tensor(steps))
    alone = torch.cat([predicted(slice(i, i + 1), step) for i, step in enumerate(steps)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(x0.square().sum(), n)[0] for x0 in (together, alone)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert together.dtype == x_t.dtype


def test_states_kept_in_one_rollout_are_those_of_several(double_model: StableDiffusion) -> None:
    schedule = double_model.schedule(8)
    n, c = double_model.encode_prompts([""]).double(), double_model.encode_prompts(PROMPTS).double()
    x_T = torch.randn(2, *double_model.latent_shape, dtype=torch.float64)
    with torch.no_grad():
        kept = rollout(double_model.denoise, x_T, c, n, schedule, Guidance(W), stop=7, keep=(4, 5, 7)).kept
        for step, latents in kept.items():
            alone = rollout(double_model.denoise, x_T, c, n, schedule, Guidance(W), stop=step).latents
            assert torch.equal(latents, alone)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_exact_step_needs_half_of_the_naive_flops(
    tiny_pipeline: Callable[..., StableDiffusionPipeline], naive: ModuleType, checkpointing: bool
) -> None:
    """Same gradient, at most half of the work, even where the naive step does not recompute activations."""
    model = StableDiffusion(tiny_pipeline(unet_channels=(64, 128)), "tiny")
    schedule, step = model.schedule(10), 7
    c, n = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    x_t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    arguments = (x_t, step, PROMPTS, c)

    with FlopCounterMode(display=False) as exact_flops:
        leaf = n.clone().requires_grad_()
        rewards = reward_of_prediction(model.denoise, model.decode, reward, *arguments, leaf, schedule, Guidance(W))
        (exact,) = torch.autograd.grad(rewards.sum(), leaf)
    with FlopCounterMode(display=False) as naive_flops:
        same = naive.naive_gradient(model, reward, *arguments, n, schedule, Guidance(W), checkpointing=checkpointing)

    torch.testing.assert_close(exact, same, rtol=1e-3, atol=1e-5 * same.abs().max().item())
    assert exact_flops.get_total_flops() <= 0.5 * naive_flops.get_total_flops()
    assert not any(p.requires_grad for p in model.pipeline.unet.parameters())
