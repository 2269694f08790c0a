"""Prompts, settings and a reward for tiny models, and the images that this package makes with them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.method import rollout
from renege_ray.method.embedding import ATTENTION_MASK
from renege_ray.models.base import TextToImage
from renege_ray.models.text_encoder import hash_text_encoders, text_encoders

PROMPTS = ("a red circle", "two", "")
STEPS, W = 5, 3.0


def noise(model: TextToImage, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


def sampled(scale: float = W, **options: float) -> SamplingConfig:
    """How the images of these tests are made."""
    return SamplingConfig(
        num_inference_steps=STEPS, guidance_scale=scale, guidance_options=options, gradient_steps=(0, STEPS)
    )


@torch.no_grad()
def images_of(
    model: TextToImage, prompts: Sequence[str], negative: Tensor, sampling: SamplingConfig | None = None
) -> Tensor:
    """A whole generation by this package."""
    embeds, schedule, model = model.encode_prompts(prompts), model.schedule(STEPS), model.for_prompts(prompts)
    guidance = model.guidance(sampling or sampled(), schedule)
    end = rollout(model.denoise, noise(model, len(prompts)), embeds, negative, schedule, guidance)
    return model.decode(end.latents)


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward that a tiny random model can raise."""
    return images[:, 0].flatten(1).mean(dim=1) - images[:, 1:].flatten(1).mean(dim=1)


def learned_entries(model: TextToImage) -> Tensor:
    """(1, L', D') bool: which entries of the packed embedding are learned; the others are zeros or the mask."""
    tensors = {name: torch.ones(shape) for name, shape in model.embedding_layout.shapes.items()}
    if ATTENTION_MASK in tensors:
        tensors[ATTENTION_MASK] = torch.zeros_like(tensors[ATTENTION_MASK])
    return model.embedding_layout.pack(tensors) > 0


def hash_of(pipeline: Any) -> str:
    """Of a pipeline's text encoders."""
    return hash_text_encoders(text_encoders(pipeline))
