"""What pipelines do to a guided output u so that it is not larger than the prompt's own, e_c: the r of `Guidance`.

Each has its derivative by autograd. With s = |e_c| / |u|, and u^ = u / |u|:

    match_norm       r = s u                       dr/du = s (1 - u^ u^T)         only the direction is learned
    match_deviation  r = p k u + (1 - p) u         dr/du = p k (1 - u z^T) + 1 - p
                     k = std(e_c) / std(u),        z = (u - mean(u)) / ((N - 1) var(u)), over the N numbers of a sample
    limit_norm       r = u where |u| <= m |e_c|,   dr/du = 1 there,
                     else m s u                    else m s (1 - u^ u^T)

Shapes: u, e_c and r are (B, C, H, W), or (B, C, F, H, W) for videos.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def match_norm(guided: Tensor, noise_prompt: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """u, scaled to the norm of e_c, part by part (Qwen-Image, Lumina2).

    Args:
        guided: u.
        noise_prompt: e_c.
        norm: of the parts: `patch_norm` or `row_norm`.
    """
    return guided * (norm(noise_prompt) / norm(guided))


def patch_norm(x: Tensor, side: int = 2) -> Tensor:
    """The norm of each token of a transformer that packs side x side latents of all channels into one.

    Returns:
        (B, 1, H, W): each latent has the norm of the token that it is part of.
    """
    batch, _, height, width = x.shape
    patches = x.square().sum(dim=1).reshape(batch, height // side, side, width // side, side)
    norms = patches.sum(dim=(2, 4), keepdim=True).sqrt()
    return norms.expand_as(patches).reshape(batch, 1, height, width)


def row_norm(x: Tensor) -> Tensor:
    """The norm over the last dimension, (B, C, H, 1): of a row of a channel's latents, as in Lumina2's pipeline."""
    return x.norm(dim=-1, keepdim=True)


def match_deviation(guided: Tensor, noise_prompt: Tensor, share: float) -> Tensor:
    """`guidance_rescale` of pipelines: Lin et al. 2023, Eq. 14 to 16.

    Args:
        guided: u.
        noise_prompt: e_c.
        share: p, of the rescaled output in the result.
    """
    dims = tuple(range(1, guided.ndim))
    of_prompt, of_guided = (x.std(dim=dims, keepdim=True) for x in (noise_prompt, guided))
    return share * (guided * (of_prompt / of_guided)) + (1 - share) * guided


def limit_norm(guided: Tensor, noise_prompt: Tensor, most: float) -> Tensor:
    """`cfg_normalization` of Z-Image: u, where its norm is above m times that of e_c scaled down to that.

    Args:
        guided: u.
        noise_prompt: e_c.
        most: m.
    """
    dims = tuple(range(1, guided.ndim))
    limit, norm = (torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (noise_prompt, guided))
    limit = most * limit
    return torch.where(norm > limit, guided * (limit / norm), guided)
