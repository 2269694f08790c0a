"""Sampling with a negative embedding: deterministic steps under classifier-free guidance (Eq. 5), from x_T
downwards.

Shapes as in `renege_ray.method.guidance`. One rollout serves training (stop before the step whose gradient is
taken), evaluation and generation (run to the end). The caller owns the gradient mode and all randomness:
nothing here draws a number, and nothing here says `no_grad`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from renege_ray.method.guidance import Guidance
from renege_ray.method.schedule import Schedule


class Denoiser(Protocol):
    """A frozen model's output: the noise, v, x_0 or the velocity, whichever its schedule names."""

    def __call__(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """(B, C, H, W), timesteps (0-d, or (B,) where each sample has its own), (B, L, D) -> (B, C, H, W)."""
        ...


@dataclass(frozen=True)
class Rollout:
    """Where a rollout ended, and what it passed through."""

    latents: Tensor
    """x_t at the entrance of step `stop`, or the final latents when `stop` is T; (B, C, H, W)."""
    kept: dict[int, Tensor] = field(default_factory=dict)
    """x_t at the entrance of each step that was asked for, {step: (B, C, H, W)}."""


def rollout(
    denoiser: Denoiser,
    latents: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
    *,
    stop: int | None = None,
    keep: Collection[int] = (),
) -> Rollout:
    """Take steps 0 .. stop-1 of the sampler.

    Both branches of the guidance go through the denoiser as one batch of 2B, the negative first, as in
    diffusers.

    Args:
        denoiser: the frozen model.
        latents: x_T, (B, C, H, W).
        prompt_embeds: c, (B, L, D).
        negative_prompt_embeds: n, one for all (1, L, D) or one for each (B, L, D).
        schedule: T steps.
        guidance: Eq. 5, of each step.
        stop: the step to stop before, 0..T; T, a full generation, if None.
        keep: steps, 0..stop and below T, whose entrance state is wanted: several gradients from one rollout.

    Raises:
        ValueError: `stop` or a step of `keep` outside its range, or shapes of c and n that do not go
            together.
    """
    stop = len(schedule) if stop is None else stop
    if not 0 <= stop <= len(schedule):
        raise ValueError(f"stop {stop} is outside 0..{len(schedule)}")
    if any(not 0 <= step <= min(stop, len(schedule) - 1) for step in keep):
        raise ValueError(f"keep {sorted(keep)} has a step outside 0..{min(stop, len(schedule) - 1)}")

    x, kept = latents, {}
    embeds = both_branches(negative_prompt_embeds, prompt_embeds)
    for i in range(stop):
        if i in keep:
            kept[i] = x
        x0, noise = guided_x0_and_noise(denoiser, x, i, embeds, schedule, guidance)
        x = schedule.step(x0, noise, i)
    if stop in keep:
        kept[stop] = x
    return Rollout(latents=x, kept=kept)


def both_branches(negative_prompt_embeds: Tensor, prompt_embeds: Tensor) -> Tensor:
    """n and c as one batch, the negative first: (1 | B, L, D), (B, L, D) -> (2B, L, D); see `match_batch`."""
    return torch.cat([match_batch(negative_prompt_embeds, prompt_embeds), prompt_embeds])


def guided_x0_and_noise(
    denoiser: Denoiser, latents: Tensor, step: int, embeds: Tensor, schedule: Schedule, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """Eq. 5 and 6 at one step of a sampler: (x_0, e), both (B, C, H, W), as `Schedule.split` has them.

    Args:
        denoiser: the model; both branches go through it as one batch of 2B.
        latents: x_t at the entrance of `step`, (B, C, H, W).
        step: index into the schedule, 0..T-1.
        embeds: n and c, (2B, L, D), of `both_branches`.
        schedule: T steps.
        guidance: Eq. 5, of each step.
    """
    e_n, e_c = denoiser(torch.cat([latents, latents]), schedule.timesteps[step], embeds).chunk(2)
    return schedule.split(guidance(e_n, e_c, step), latents, step)


def match_batch(negative_prompt_embeds: Tensor, prompt_embeds: Tensor) -> Tensor:
    """n as one row for each prompt, (1 | B, L, D) -> (B, L, D), without a copy.

    Raises:
        ValueError: n is neither (1, L, D) nor (B, L, D) for c of (B, L, D).
    """
    n, c = tuple(negative_prompt_embeds.shape), tuple(prompt_embeds.shape)
    if len(n) != 3 or n[1:] != c[1:] or n[0] not in (1, c[0]):
        raise ValueError(f"negative embedding of shape {n} does not go with prompt embeddings of shape {c}")
    return negative_prompt_embeds.expand_as(prompt_embeds)
