"""Trains the UNet together with its text encoder on latents of spoiled pictures and the captions they might have."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from renege_ray.models.toy.architecture import build_scheduler
from renege_ray.models.toy.captions import careful_caption, web_caption
from renege_ray.models.toy.preferences import tokenize
from renege_ray.models.toy.scenes import (
    DEFECT_COUNT_PROBABILITIES,
    WEB_DEFECT_COUNT_PROBABILITIES,
    Picture,
    Scene,
    draw,
    random_defects,
    random_offset,
    scenes_of,
)
from renege_ray.models.toy.train.loop import Recipe, fit

# First what words mean, from captions that say all; then the captions of the web, many of which say little.
CAREFUL_RECIPE = Recipe(steps=4200, batch_size=64, learning_rate=1e-3)
WEB_RECIPE = Recipe(steps=2000, batch_size=64, learning_rate=5e-4)
PICTURES = 40_000


def training_pictures(count: int, seed: int, count_probabilities: Sequence[float]) -> list[Picture]:
    """Pictures of scenes, spoiled as often as `count_probabilities` of 0, 1, ... defects say."""
    rng = random.Random(f"web pictures {seed}")
    scenes = scenes_of("train")
    return [
        Picture(rng.choice(scenes), random_offset(rng), random_defects(rng, count_probabilities)) for _ in range(count)
    ]


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: list[Picture], batch_size: int = 250) -> Tensor:
    """Scaled latents (N, 4, 8, 8) of the pictures, float32."""
    chunks = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    return torch.cat([vae.encode(draw(c) * 2 - 1).latent_dist.mean for c in chunks]) * vae.config.scaling_factor


def velocity_loss(
    unet: UNet2DConditionModel, scheduler: DDIMScheduler, latents: Tensor, embeds: Tensor, random_key: int
) -> Tensor:
    """Mean squared error of the predicted velocity v = sqrt(a) eps - sqrt(1 - a) x0 at one random t a sample."""
    generator = torch.Generator().manual_seed(random_key)
    count = len(latents)
    # Stratified over the batch: every batch sees noise of all levels.
    quantile = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    timesteps = (quantile * scheduler.config.num_train_timesteps).long()
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    return F.mse_loss(unet(noisy, timesteps, embeds).sample, target)


def train_diffusion(
    seed: int,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    folder: Path,
    careful_recipe: Recipe = CAREFUL_RECIPE,
    web_recipe: Recipe = WEB_RECIPE,
    picture_count: int = PICTURES,
) -> None:
    """Trains the UNet in place, and the text encoder with it unless that is frozen.

    Captions are drawn anew each time that a picture is used. The second stage begins with the averaged weights of the
    first. `folder` is for a checkpoint of each.
    """
    unet.to(memory_format=torch.channels_last)
    scheduler = build_scheduler()
    networks = nn.ModuleDict({"unet": unet})
    if any(parameter.requires_grad for parameter in text_encoder.parameters()):
        networks["text_encoder"] = text_encoder

    def train(
        stage: str,
        recipe: Recipe,
        caption_of: Callable[[Scene, Collection[str], random.Random], str],
        count_probabilities: Sequence[float],
    ) -> None:
        pictures = training_pictures(picture_count, seed, count_probabilities)
        latents = functools.cache(lambda: encode_pictures(vae, pictures))  # not needed where all steps are done

        def loss_of_step(step: int) -> Tensor:
            rng = random.Random(f"{seed} {stage} {step}")
            rows = rng.sample(range(picture_count), recipe.batch_size)
            captions = [caption_of(pictures[i].scene, pictures[i].defects, rng) for i in rows]
            embeds = text_encoder(tokenize(tokenizer, captions))[0]
            return velocity_loss(unet, scheduler, latents()[rows], embeds, random_key=seed * 10**7 + step)

        fit(networks, loss_of_step, recipe, folder / f"{stage}.safetensors")

    train("diffusion", careful_recipe, careful_caption, DEFECT_COUNT_PROBABILITIES)
    train("diffusion_web", web_recipe, web_caption, WEB_DEFECT_COUNT_PROBABILITIES)
    networks.eval().requires_grad_(False)
    unet.to(memory_format=torch.contiguous_format)
