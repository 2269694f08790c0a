"""What vision towers are given and what they compute in.

From images of any size to what a tower takes, in float32 and differentiable throughout: B, H, W: images (B, 3, H, W) in
[0, 1]. The packages that the rewards come from do this on PIL images; bicubic interpolation with antialiasing is the
same filter, but here without the rounding to 8 bits, which has no gradient.

A tower in bfloat16 whose scores are those of float32: weights and matrix products of attention and MLP are bfloat16,
which is nearly all of the work. The residual stream, to which they are added, the norms and what comes after the last
layer stay float32. Measured on ViTs of 32 layers with random weights, cosines are off by 0.0004 then; with everything
in bfloat16 it is 0.0013, as much as two images differ.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renege_ray.models.networks.constants import constant

# Of OpenAI's CLIP; all models here were trained with them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, height, width), bicubic with antialiasing. It may leave [0, 1] a little at edges."""
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)


def letterbox(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): the longest side becomes `size`, and black fills the rest."""
    scale = size / max(images.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    images = resize(images, height, width)
    missing_height, missing_width = size - height, size - width
    left, top = missing_width // 2, missing_height // 2
    return F.pad(images, (left, missing_width - left, top, missing_height - top))


def centre_crop(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size): the shortest side becomes `size`, and the middle is kept."""
    shortest = min(images.shape[-2:])
    height, width = (size * side // shortest for side in images.shape[-2:])
    return centre(resize(images, height, width), size)


def centre(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), the middle."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def normalise(images: Tensor, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same minus a mean, divided by a standard deviation (CLIP's)."""
    shift, scale = (constant(values, images.dtype, images.device).view(3, 1, 1) for values in (mean, std))
    return (images - shift) / scale


def compute_in(tower: nn.Module, dtype: torch.dtype) -> None:
    """Move attention and MLP of a vision tower of transformers (CLIP's, BLIP's) to a dtype, in place."""
    layers: Any = tower.encoder.layers  # type: ignore[union-attr]
    compute_blocks_in([block for layer in layers for block in (layer.self_attn, layer.mlp)], dtype)


def compute_blocks_in(blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Move blocks whose outputs are added to a float32 stream to a dtype, in place."""
    if dtype == torch.float32:
        return
    for block in blocks:
        block.to(dtype)
        block.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _cast_inputs(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """To the block's own dtype; its output is added to a float32 stream, and so becomes float32 again."""
    dtype = next(block.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, inputs)), {name: cast(value) for name, value in named.items()}
