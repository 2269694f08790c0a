"""The gradient of the objective at one step, in two stages that meet at x_0.

    dR/dn = dR/dx_0  dx_0/dn

The second factor needs the denoiser's activations, the first the decoder's and the rewards'. Taken as one graph, both
are held at once for every sample. Here R is followed back to x_0 first, a few images at a time and one reward after the
other, and only d R / d x_0 is kept; then one pass goes back through the denoiser for all samples. It is the chain rule:
nothing is approximated, and nothing is computed twice.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from renege_ray.method.guidance import Guidance
from renege_ray.method.objective import Decode, RewardFunction
from renege_ray.method.rollout import Denoiser
from renege_ray.method.schedule import Schedule

SlopeOfReward = Callable[[Tensor], Tensor]
"""d R / d x_0 at x_0, both (B, C, H, W)."""


def gradient_at(
    denoiser: Denoiser,
    latents: Tensor,
    step: int | Tensor,
    prompt_output: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
    slope_of_reward: SlopeOfReward,
) -> tuple[Tensor, Tensor]:
    """dR/dn of each sample at a step, and e_n, which a rollout that goes on from here has use for.

    Args:
        denoiser: the frozen model.
        latents: x_t at the entrance of `step`, (B, C, H, W).
        step: index into the schedule, 0..T-1; or an index for each sample, (B,) int64 on the CPU.
        prompt_output: e_c at x_t, (B, C, H, W): it does not depend on n.
        negative_prompt_embeds: n of each sample, (B, L, D). A leaf for each: one that fails (NaN) spoils no other.
        schedule: T steps.
        guidance: Eq. 5, of each step.
        slope_of_reward: the first stage.

    Returns:
        dR/dn (B, L, D), and e_n (B, C, H, W), both without a graph.
    """
    with torch.enable_grad():
        n = negative_prompt_embeds.detach().clone().requires_grad_()
        e_n = denoiser(latents, schedule.timesteps[step], n)
        x0, _ = schedule.split(guidance(e_n, prompt_output, step), latents, step)
    (gradients,) = torch.autograd.grad(x0, n, slope_of_reward(x0.detach()))
    return gradients, e_n.detach()


def reward_and_slope(
    decode: Decode, rewards: Mapping[str, tuple[RewardFunction, float]], x0: Tensor, prompts: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """The rewards of the decoded x_0, and the way back to x_0 of their weighted sum.

    Each reward is followed back to the image alone, so that the largest one's activations are held beside the
    decoder's, not those of all.

    Args:
        decode: latents -> images in [0, 1].
        rewards: {name: (R_k, w_k)}.
        x0: (B, C, H, W).
        prompts: the B prompts in words.

    Returns:
        {name: R_k (B,)}, and d (sum over k of w_k R_k) / d x_0, (B, C, H, W).
    """
    with torch.enable_grad():
        latents = x0.detach().requires_grad_()
        images = decode(latents)
        seen = images.detach().requires_grad_()
    values, slope = {}, torch.zeros_like(seen)
    for name, (reward, weight) in rewards.items():
        with torch.enable_grad():
            # A view: torch's FLOP counter cannot watch a module that is given a leaf.
            value = reward(seen.view_as(seen), prompts)
            total = value.sum()  # its gradient is each image's own: no image's reward depends on another one
        slope += weight * torch.autograd.grad(total, seen)[0]
        values[name] = value.detach()
    (slope,) = torch.autograd.grad(images, latents, slope)
    return values, slope
