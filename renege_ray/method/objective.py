"""The objective (Eq. 7): the reward of the image that one guided step predicts, as a function of n.

    J(n) = mean over prompts of R(c, decode(x_0)),      x_0 = x_0(x_t, e(n))  by Eq. 5 and 6

The gradient goes R -> decode -> x_0 -> e -> e_n -> n. It stops at x_t, which a rollout without gradient has
made, and the prompt's branch e_c does not depend on n; so of the three passes through the denoiser that a
step is made of (e_c, e_n and the way back through e_n) only the last two have anything to do with gradients.
Shapes as in `guidance`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from renege_ray.method.guidance import Guidance
from renege_ray.method.rollout import Denoiser, match_batch
from renege_ray.method.schedule import Schedule

Decode = Callable[[Tensor], Tensor]
"""Latents (B, C, H, W) -> images (B, 3, height, width) in [0, 1], differentiable."""

RewardFunction = Callable[[Tensor, Sequence[str]], Tensor]
"""Images (B, 3, height, width) in [0, 1] and B prompts -> rewards (B,), differentiable in the images."""


def predict_x0(
    denoiser: Denoiser,
    latents: Tensor,
    step: int | Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
) -> Tensor:
    """Eq. 5 and 6 at one step: x_0 as a differentiable function of n, and of nothing else.

    Args:
        denoiser: the frozen model; weights that require gradients would get them, at their cost.
        latents: x_t at the entrance of `step`, (B, C, H, W); treated as a constant.
        step: index into the schedule, 0..T-1; or an index for each sample, (B,) int64 on the CPU.
        prompt_embeds: c, (B, L, D); treated as a constant.
        negative_prompt_embeds: n, (1 | B, L, D).
        schedule: T steps.
        guidance: Eq. 5, of each step.

    Returns:
        x_0, (B, C, H, W).
    """
    t, x_t = schedule.timesteps[step], latents.detach()
    with torch.no_grad():
        e_c = denoiser(x_t, t, prompt_embeds)
    e_n = denoiser(x_t, t, match_batch(negative_prompt_embeds, prompt_embeds))
    x0, _ = schedule.split(guidance(e_n, e_c, step), x_t, step)
    return x0


def reward_of_prediction(
    denoiser: Denoiser,
    decode: Decode,
    reward: RewardFunction,
    latents: Tensor,
    step: int | Tensor,
    prompts: Sequence[str],
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
) -> Tensor:
    """Eq. 7 before the mean: R(c, decode(x_0)) of each sample.

    Samples do not touch each other, so that the gradient of the sum is the sum of the samples' gradients,
    however they are batched.

    Args:
        denoiser, latents, step, prompt_embeds, negative_prompt_embeds, schedule, guidance: see
            `predict_x0`.
        decode: latents -> images in [0, 1].
        reward: images, prompts -> (B,).
        prompts: the B prompts in words.

    Returns:
        Rewards, (B,), differentiable in n.
    """
    x0 = predict_x0(denoiser, latents, step, prompt_embeds, negative_prompt_embeds, schedule, guidance)
    return reward(decode(x0), prompts)
