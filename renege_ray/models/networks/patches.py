"""Latents as transformers of Flux's kind take them: 2 x 2 latents of all channels as one token."""

from torch import Tensor

SIDE = 2


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) as tokens, row by row: (B, H/2 W/2, 4 C), each by channel and then by place."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * SIDE**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: (B, C, H, W)."""
    batch, _, channels = tokens.shape
    patches = tokens.reshape(batch, height // SIDE, width // SIDE, channels // SIDE**2, SIDE, SIDE)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)
