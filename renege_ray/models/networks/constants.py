"""Numbers that an accelerator needs at every call, brought there once."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as one row, (1, len(values)), made once: a copy to an accelerator waits for all that it computes."""
    with torch.inference_mode(False):  # the first caller's mode must not keep later ones from a gradient
        return torch.tensor([values], dtype=dtype, device=device)
