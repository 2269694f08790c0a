"""The ReFL-style loop that ours is measured against: the same gradient, at the cost that it is said to have."""

from collections.abc import Callable, Sequence

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.refl import PlainStableDiffusion, at_depth, counted_rows, depths, refl_gradient, weighted_mean
from renege_ray.config.run import RunConfig, SamplingConfig, parse_config
from renege_ray.method import reward_of_prediction, rollout
from renege_ray.method.guidance import Guidance
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.draws import stratified_step
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.workers import Workers
from renege_ray.training.gradient import GradientOfBatch
from tests.simple_rewards import Channel

W, STEPS, STEP = 3.0, 6, 4
PROMPTS = ["a red fox", "a hen"]


@pytest.fixture
def models(tiny_pipeline: Callable[..., StableDiffusionPipeline]) -> tuple[StableDiffusion, PlainStableDiffusion]:
    """The same weights, taken over and plain; images stay clear of the clamp, which the two go back through apart."""
    pipelines = tiny_pipeline(), tiny_pipeline()
    with torch.no_grad():
        for pipeline in pipelines:
            pipeline.vae.decoder.conv_out.weight.mul_(0.1)
    return StableDiffusion(pipelines[0], "tiny"), PlainStableDiffusion(pipelines[1])


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.square().flatten(1).mean(1)


def test_its_gradient_is_that_of_the_exact_step(models: tuple[StableDiffusion, PlainStableDiffusion]) -> None:
    model, plain = models
    schedule, c, n = model.schedule(STEPS), model.encode_prompts(PROMPTS), model.encode_prompts([""])
    x_T = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    asked: set[str] = set()
    for name, weight in [*plain.pipeline.unet.named_parameters(), *plain.pipeline.vae.decoder.named_parameters()]:
        weight.requires_grad_().register_post_accumulate_grad_hook(lambda weight, name=name: asked.add(name))

    with counted_rows(plain.pipeline.unet) as rows:
        found = refl_gradient(plain, reward, x_T, STEP, PROMPTS, c, n, schedule, Guidance(W))

    with torch.no_grad():
        x_t = rollout(model.denoise, x_T, c, n, schedule, Guidance(W), stop=STEP).latents
    leaf = n.clone().requires_grad_()
    rewards = reward_of_prediction(
        model.denoise, model.decode, reward, x_t, STEP, PROMPTS, c, leaf, schedule, Guidance(W)
    )
    (exact,) = torch.autograd.grad(rewards.sum(), leaf)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5 * exact.abs().max().item())
    assert rows == [2 * len(PROMPTS)] * (STEP + 1)
    weights = [*plain.pipeline.unet.named_parameters(), *plain.pipeline.vae.decoder.named_parameters()]
    assert asked == {name for name, _ in weights}  # every weight got a gradient
    assert all(weight.grad is None and not weight.requires_grad for _, weight in weights)


@pytest.mark.parametrize(("first", "last"), [(2, 14), (0, 10), (3, 7)])
@pytest.mark.parametrize("per_rollout", [1, 2, 4])
def test_the_depths_are_those_of_the_range_on_average(first: int, last: int, per_rollout: int) -> None:
    sampling = SamplingConfig(num_inference_steps=20, gradient_steps=(first, last))
    shares = depths(sampling, per_rollout)
    drawn = [19 - stratified_step(sampling, 0, per_rollout, seed) for seed in range(4000)]
    mean = weighted_mean({depth: float(depth) for depth in shares}, shares)
    assert mean == pytest.approx(sum(drawn) / len(drawn), abs=0.2)
    assert sum(shares.values()) == pytest.approx(1) and max(shares) - min(shares) <= 1


def configure(**optim: int) -> RunConfig:
    return parse_config(
        {
            "sampling": {"num_inference_steps": STEPS, "guidance_scale": W, "gradient_steps": [0, 4]},
            "optim": {"batch_size": 2, "timestep_groups": 1} | optim,
        }
    )


@pytest.mark.parametrize(("depth", "per_rollout"), [(1, 1), (0, 2), (1, 3)])
def test_a_depth_leaves_nothing_to_chance(
    models: tuple[StableDiffusion, PlainStableDiffusion], depth: int, per_rollout: int
) -> None:
    """With one gradient at step i, 2 i + 2 forwards; never more than that and two for each further gradient."""
    model, _ = models
    config = at_depth(configure(), depth, per_rollout)
    encoded = EncodedPrompts(model)
    gradient = GradientOfBatch(config, model, WeightedReward({Channel(): 1.0}), PROMPTS, Workers(), encoded)
    i = STEPS - 1 - depth
    for step in range(3):
        with counted_rows(model.denoiser) as rows:
            found = gradient(step, encoded([""]))
        assert found.rewards["reward"].numel() == 2 * per_rollout
        if per_rollout == 1:
            assert sum(rows) == 2 * (2 * i + 2)
        assert 2 * (2 * i + 2) <= sum(rows) <= 2 * (2 * i + 2 * per_rollout)
