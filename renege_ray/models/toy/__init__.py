"""The embedded model: a small text-to-image latent diffusion model that the package carries, with rewards and a judge.

    pipeline()   the model as a diffusers StableDiffusionPipeline
    export(DIR)  the same as a folder for `StableDiffusionPipeline.from_pretrained(DIR)`

How it was trained and how good it is: `MODEL_CARD.md` beside this file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from renege_ray.errors import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["GUIDANCE_SCALE", "NUM_INFERENCE_STEPS", "PIPELINE_FOLDER", "WEIGHTS_FOLDER", "export", "pipeline"]

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
PIPELINE_FOLDER = WEIGHTS_FOLDER / "pipeline"

# What the model was made for; its card's figures are measured with these.
NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 2.5


def pipeline(folder: Path = PIPELINE_FOLDER) -> StableDiffusionPipeline:
    """The embedded model in float32 on the CPU (it is stored in float16)."""
    from renege_ray.models.hub import read_pipeline

    return read_pipeline(folder, "toy", variant=None)


def export(folder: Path) -> None:
    """Writes the model as a diffusers folder; all of it or nothing.

    Raises:
        UserError: `folder` exists and is not an empty folder, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export folder {folder} exists and is not empty: name a new one")
    temporary = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        # In float32: loaded without a dtype, a float16 folder comes up with parts of either type, and fails.
        pipeline().save_pretrained(temporary, safe_serialization=True)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"export folder {folder} cannot be written: {error.strerror}") from error
