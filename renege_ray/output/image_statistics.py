"""Saturation and sharpness as a scorer: two plain numbers that show a reward being exploited before the eye
does.

An embedding that has learned to please the reward rather than the viewer tends to oversaturate and to draw
fringes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from renege_ray.output.pictures import image_saturation, image_sharpness

ABOUT = {
    "saturation": "how far the colours are from grey: no better or worse, but it rises where a reward is being pleased",
    "sharpness": "edges and noise together: no better or worse, but it rises where a reward is being pleased",
}


class ImageStatistics:
    """A scorer (see `renege_ray.rewards.base`) that looks at the pixels alone."""

    names: tuple[str, ...] = tuple(ABOUT)

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{"saturation": (B,), "sharpness": (B,)} of images (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            return {"saturation": image_saturation(images), "sharpness": image_sharpness(images)}
