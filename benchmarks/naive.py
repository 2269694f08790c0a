"""The gradient step as it is written without thinking about it: what the exact step is measured against.

Both branches of the guidance go through the UNet with a graph, all weights of UNet and VAE require gradients
(and get them), and activations are recomputed in the backward pass (gradient checkpointing, as fine-tuning
scripts have it). The gradient of the embedding is the same; the FLOPs and the memory are not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from renege_ray.method.guidance import Guidance
from renege_ray.method.objective import RewardFunction
from renege_ray.method.rollout import match_batch
from renege_ray.method.schedule import Schedule


class LatentDiffusion(Protocol):
    """What the naive step asks of a model; `denoise` and `decode` as `renege_ray.models.base.TextToImage` has them."""

    @property
    def pipeline(self) -> Any:
        """Of diffusers, with a UNet and a VAE."""
        ...

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """(B, C, H, W), timestep, (B, L, D) -> (B, C, H, W)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, height, width)."""
        ...


@contextmanager
def naive_training_mode(model: LatentDiffusion, *, checkpointing: bool) -> Iterator[None]:
    """Let all weights of UNet and VAE require gradients, and put everything back afterwards."""
    modules = (model.pipeline.unet, model.pipeline.vae)
    for module in modules:
        module.requires_grad_(True)
        if checkpointing:
            module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(False)
            module.zero_grad(set_to_none=True)
            module.disable_gradient_checkpointing()


def naive_gradient(
    model: LatentDiffusion,
    reward: RewardFunction,
    latents: Tensor,
    step: int,
    prompts: Sequence[str],
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
    *,
    checkpointing: bool = True,
) -> Tensor:
    """The gradient of the sum of the rewards with respect to n, (1 | B, L, D); arguments as
    `reward_of_prediction`.
    """
    n = negative_prompt_embeds.detach().clone().requires_grad_()
    with naive_training_mode(model, checkpointing=checkpointing):
        embeds = torch.cat([match_batch(n, prompt_embeds), prompt_embeds])
        output = model.denoise(torch.cat([latents, latents]), schedule.timesteps[step], embeds)
        e_n, e_c = output.chunk(2)
        guided = guidance(e_n, e_c, step)
        x0, _ = schedule.split(guided, latents, step)
        reward(model.decode(x0), prompts).sum().backward()
    assert n.grad is not None
    return n.grad
