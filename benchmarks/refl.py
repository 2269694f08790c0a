"""A ReFL-style loop (Xu et al. 2023, arXiv 2304.05977) beside ours: what both compute, and what a gradient costs them.

ReFL's training script goes about a gradient of the reward so: a batch of samples is a rollout without a graph to a
random step of the range, both branches of the guidance as one batch; there one guided step with both branches in the
graph; x_0, its image, the reward, and the way back, through weights that ask for gradients. One gradient a rollout.
The loop stands on diffusers' modules alone, so that nothing this package does to a model speeds it up. In its favour,
texts are encoded beforehand and the weights lie as tensor cores want them (`channels_last`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.naive import naive_gradient
from renege_ray.config.run import RunConfig, SamplingConfig, with_values
from renege_ray.method.guidance import Guidance
from renege_ray.method.objective import RewardFunction
from renege_ray.method.rollout import rollout
from renege_ray.method.schedule import Schedule


class PlainStableDiffusion:
    """Stable Diffusion's UNet and decoder as diffusers has them; `denoise` and `decode` as `TextToImage` has them."""

    def __init__(self, pipeline: Any) -> None:
        """`pipeline`: one that no `FrozenPipeline` has taken over; its modules stay in their type and place."""
        self.pipeline = pipeline
        for module in (pipeline.unet, pipeline.vae):
            nn.Module.to(module, memory_format=torch.channels_last)
            module.requires_grad_(False).eval()

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """(B, C, H, W), 0-d timestep, (B, L, D) -> (B, C, H, W)."""
        unet = self.pipeline.unet
        states = prompt_embeds.to(unet.dtype)
        output = unet(latents.to(unet.dtype), timestep.to(latents.device), states, return_dict=False)[0]
        return output.to(latents.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> images (B, 3, height, width) in [0, 1]."""
        vae = self.pipeline.vae
        images = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        return (images.to(latents.dtype) * 0.5 + 0.5).clamp(0, 1)


def refl_gradient(
    model: PlainStableDiffusion,
    reward: RewardFunction,
    x_T: Tensor,
    step: int,
    prompts: Sequence[str],
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
    *,
    checkpointing: bool = False,
) -> Tensor:
    """One gradient a sample, from x_T (B, C, H, W) by way of `step`.

    Other arguments as `renege_ray.method.objective.reward_of_prediction`; `checkpointing` computes activations a second
    time in the backward pass.

    Returns:
        The gradient of the sum of the rewards with respect to n, (1, L, D). Those of the weights of UNet and VAE are
        computed beside it and let go.
    """
    n = negative_prompt_embeds
    with torch.no_grad():
        x_t = rollout(model.denoise, x_T, prompt_embeds, n, schedule, guidance, stop=step).latents
    return naive_gradient(
        model, reward, x_t, step, prompts, prompt_embeds, n, schedule, guidance, checkpointing=checkpointing
    )


def depths(sampling: SamplingConfig, per_rollout: int) -> dict[int, float]:
    """How deep a rollout with k gradients has to go on average: {steps counted from the clean end: share of updates}.

    A rollout ends at the deepest of its k steps, the one in the first of the k strata of the range. What an update
    costs grows by the same amount with each step of the rollout, so two neighbouring depths, weighted so that their
    mean is the range's, cost what all depths of the range cost on average.
    """
    first, last = sampling.gradient_steps
    width = (last - first) / per_rollout
    mean = first + sum(j * min(1.0, width - j) for j in range(ceil(width))) / width
    shares = {floor(mean): floor(mean) + 1 - mean, floor(mean) + 1: mean - floor(mean)}
    return {depth: share for depth, share in shares.items() if share > 1e-9}


def at_depth(config: RunConfig, depth: int, per_rollout: int) -> RunConfig:
    """The configuration with k gradients a rollout, at k neighbouring steps of which the deepest is `depth` from the
    clean end: a range of k steps leaves nothing to chance.
    """
    return with_values(
        config,
        {
            "sampling.gradient_steps": [depth, depth + per_rollout],
            "optim.gradients_per_rollout": per_rollout,
            "tuning.gradients_per_rollout": 1,
        },
    )


def weighted_mean(values: Mapping[int, float], shares: Mapping[int, float]) -> float:
    """The mean of {depth: value} over the shares of `depths`."""
    return sum(share * values[depth] for depth, share in shares.items())


@contextmanager
def counted_rows(denoiser: nn.Module) -> Iterator[list[int]]:
    """The batch size of each call of a denoiser while the block runs."""
    rows: list[int] = []
    hook = denoiser.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()
