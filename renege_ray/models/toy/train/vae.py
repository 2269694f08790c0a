"""Trains the autoencoder on pictures that are spoiled in every way."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from renege_ray.models.toy.architecture import build_vae
from renege_ray.models.toy.scenes import Picture, draw, possible_defects, random_defects, random_offset, scenes_of
from renege_ray.models.toy.train.loop import Recipe, fit

RECIPE = Recipe(steps=2600, batch_size=24, learning_rate=1.5e-3, weight_decay=0.0)
KL_WEIGHT = 1e-6


def random_pictures(count: int, *key: object) -> list[Picture]:
    """Training pictures, drawn as a function of the key; half of them hardly spoiled."""
    rng = random.Random(" ".join(map(str, key)))
    scenes = scenes_of("train")
    light = [d for d in possible_defects() if len(d) <= 1]
    return [
        Picture(
            rng.choice(scenes), random_offset(rng), rng.choice(light) if rng.random() < 0.5 else random_defects(rng)
        )
        for _ in range(count)
    ]


def train_vae(seed: int, checkpoint: Path, recipe: Recipe = RECIPE) -> AutoencoderKL:
    """Trains with L1 + 2 MSE and a tiny KL term; sets `scaling_factor` so that latents have unit variance."""
    torch.manual_seed(seed)
    vae = build_vae().to(memory_format=torch.channels_last)

    def loss_of_step(step: int) -> Tensor:
        images = draw(random_pictures(recipe.batch_size, seed, "vae", step)) * 2 - 1
        posterior = vae.encode(images.to(memory_format=torch.channels_last)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed * 10**6 + step))
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return F.l1_loss(decoded, images) + 2 * F.mse_loss(decoded, images) + KL_WEIGHT * posterior.kl().mean()

    fit(vae, loss_of_step, recipe, checkpoint)
    vae = vae.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    latents = vae.encode(draw(random_pictures(512, seed, "vae scale")) * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: list[Picture]) -> float:
    """Peak signal-to-noise ratio in dB of decoded against drawn pictures, mean over the pictures."""
    images = draw(pictures)
    decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
    error = (decoded - images).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())
