"""Trains the second embedded model: another UNet, from other pictures, with the first one's text encoder and VAE.

An embedding that was learned with the first model fits it, as one of SD 1.5 fits SD 1.4: whether it helps there too
is what transfer means.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from renege_ray.models.toy import pipeline
from renege_ray.models.toy.architecture import SECOND_UNET_WIDTHS, build_unet
from renege_ray.models.toy.train import diffusion

# Shorter than the first model's training: what words mean is known from the beginning.
STEPS_SHARE = 0.5
PICTURES = 20_000
SEED_OFFSET = 1


def train_second(seed: int, folder: Path, scale: float = 1.0) -> UNet2DConditionModel:
    """The second model's UNet, trained beside the package's own frozen text encoder and autoencoder.

    `folder` is for checkpoints; `scale` is the part of the steps and pictures that is trained with.
    """
    shared = pipeline()
    shared.text_encoder.requires_grad_(False)
    shared.vae.requires_grad_(False)
    careful, web = (
        replace(recipe, steps=max(1, round(recipe.steps * STEPS_SHARE * scale)))
        for recipe in (diffusion.CAREFUL_RECIPE, diffusion.WEB_RECIPE)
    )
    seed += SEED_OFFSET
    torch.manual_seed(seed)
    unet = build_unet(SECOND_UNET_WIDTHS)
    diffusion.train_diffusion(
        seed,
        unet,
        shared.text_encoder,
        shared.vae,
        shared.tokenizer,
        folder,
        careful,
        web,
        max(256, round(PICTURES * scale)),
    )
    return unet
