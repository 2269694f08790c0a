"""The embedded models: small text-to-image latent diffusion models that the package carries, with rewards and a judge.

    pipeline()   a model as a diffusers StableDiffusionPipeline
    export(DIR)  the same as a folder for `StableDiffusionPipeline.from_pretrained(DIR)`

There are two: `toy`, and `toy2`, whose UNet was trained on from the first one's, with the same text encoder and
autoencoder. What is learned with the one can be tried on the other. How they were trained and how good they are:
`MODEL_CARD.md` beside this file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from renege_ray.errors import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = [
    "EMBEDDED_MODELS",
    "GUIDANCE_SCALE",
    "NUM_INFERENCE_STEPS",
    "PIPELINE_FOLDER",
    "SECOND_MODEL",
    "SECOND_UNET_FOLDER",
    "TRAINING_STEPS",
    "WEIGHTS_FOLDER",
    "export",
    "pipeline",
]

FIRST_MODEL, SECOND_MODEL = EMBEDDED_MODELS = ("toy", "toy2")

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
PIPELINE_FOLDER = WEIGHTS_FOLDER / "pipeline"
SECOND_UNET_FOLDER = WEIGHTS_FOLDER / "second_unet"

# What the model was made for; its card's figures are measured with these.
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.5
TRAINING_STEPS = 1000  # of its noise schedule


def pipeline(
    model: str = FIRST_MODEL, *, weights: Path = WEIGHTS_FOLDER, text_only: bool = False
) -> StableDiffusionPipeline:
    """An embedded model in float32 on the CPU (it is stored in float16).

    Args:
        model: its name.
        weights: where it is stored.
        text_only: leave out the UNet and the VAE.
    """
    from renege_ray.models.loading.hub import read_component, read_pipeline

    pipe = read_pipeline(weights / PIPELINE_FOLDER.name, model, variant=None, text_only=text_only)
    if model == SECOND_MODEL and not text_only:
        pipe.unet = read_component(type(pipe.unet), weights / SECOND_UNET_FOLDER.name, model)
    return pipe


def export(folder: Path, model: str = FIRST_MODEL) -> None:
    """Writes a model as a diffusers folder; all of it or nothing.

    Raises:
        UserError: `folder` exists and is not an empty folder, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export folder {folder} exists and is not empty: name a new one")
    temporary = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        # In float32: loaded without a dtype, a float16 folder comes up with parts of either type, and fails.
        pipeline(model).save_pretrained(temporary, safe_serialization=True)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"export folder {folder} cannot be written: {error.strerror}") from error
