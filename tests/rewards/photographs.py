"""Real photographs, which scikit-image ships."""

from functools import cache

import torch
from skimage import data
from torch import Tensor


@cache
def photographs() -> dict[str, Tensor]:
    """(1, 3, height, width) in [0, 1]: square, wide, and wide with an odd width."""
    loaded = {"astronaut": data.astronaut(), "coffee": data.coffee(), "chelsea": data.chelsea()}
    return {name: torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 for name, pixels in loaded.items()}
