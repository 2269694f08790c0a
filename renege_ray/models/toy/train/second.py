"""Trains the second embedded model: the first one's UNet trained on, on other pictures with other captions, beside its
frozen text encoder and autoencoder.

So the two are relatives as SD 1.4 and SD 1.5 are, which go back to one checkpoint: whether an embedding that was
learned with the one helps with the other is what transfer means. (Between UNets that were trained from different random
weights there is none: see `benchmarks/RESULTS.md`.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import UNet2DConditionModel

from renege_ray.models.loading.hub import read_pipeline
from renege_ray.models.toy import FIRST_MODEL, PIPELINE_FOLDER
from renege_ray.models.toy.train import diffusion

# As hot as the first model's training, so that the weights move far, but shorter.
CAREFUL_STEPS, WEB_STEPS = 700, 500
PICTURES = 20_000
SEED_OFFSET = 1


def train_second(seed: int, folder: Path, scale: float = 1.0) -> UNet2DConditionModel:
    """The second model's UNet.

    `folder` is for checkpoints; `scale` is the part of the steps and pictures that is trained with.
    """
    shared = read_pipeline(PIPELINE_FOLDER, FIRST_MODEL)
    shared.text_encoder.requires_grad_(False)
    shared.vae.requires_grad_(False)
    unet: UNet2DConditionModel = shared.unet.train()
    diffusion.train_diffusion(
        seed + SEED_OFFSET,
        unet,
        shared.text_encoder,
        shared.vae,
        shared.tokenizer,
        folder,
        replace(diffusion.CAREFUL_RECIPE, steps=max(1, round(CAREFUL_STEPS * scale))),
        replace(diffusion.WEB_RECIPE, steps=max(1, round(WEB_STEPS * scale))),
        max(256, round(PICTURES * scale)),
    )
    return unet
