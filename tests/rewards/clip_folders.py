"""CLIPs of random weights as folders in transformers' format, beside the open_clip models that they were made of."""

from pathlib import Path

import torch
from open_clip.model import CLIP

from renege_ray.rewards.clip_towers import clip_from_open_clip
from tests.rewards.open_clip_models import open_clip_model, save_checkpoint


def clip_folder(folder: Path, *, quick_gelu: bool) -> CLIP:
    """Write model.safetensors and config.json; the conversion is what test_hpsv2 tests."""
    reference = open_clip_model(quick_gelu=quick_gelu)
    checkpoint = save_checkpoint(reference, folder / "open_clip.pt")
    model = clip_from_open_clip(checkpoint, "quick_gelu" if quick_gelu else "gelu", torch.float32)
    model.save_pretrained(folder)
    checkpoint.unlink()
    return reference
