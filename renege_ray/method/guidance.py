"""Classifier-free guidance: the one line through which a negative embedding acts on an image.

Notation, used in all of `renege_ray.method`
    B, C, H, W   batch, latent channels, height, width          L, D   tokens, width of the text embedding
    c            prompt embedding            (B, L, D)           n      negative embedding   (1 | B, L, D)
    x_t          latents at timestep t       (B, C, H, W)        w      guidance scale
    a_t          alphas_cumprod[t]           scalar in [0, 1]    T      number of inference steps
    e_c, e_n     model output for c, for n   (B, C, H, W)
Equation numbers are those of the ReNeg paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from renege_ray.method.schedule import factor

Rescale = Callable[[Tensor, Tensor], Tensor]
"""What some pipelines do to the guided output u, given e_c; all (B, C, H, W). See `renege_ray.method.rescaling`."""


@dataclass(frozen=True)
class Guidance:
    """Eq. 5 as a pipeline has it: u = e_n + w_i (e_c - e_n) at step i, and e = r(u, e_c).

        plain (the paper)                      w_i = w,                  r(u, e_c) = u
        e = e_c + g (e_c - e_n)                w_i = g + 1
        an interval of steps, two scales       w_i differs; w_i = 1 is no guidance: u = e_c
        a rescaled result                      r, at steps with guidance

    The way back to n goes through e_n:

        de / de_n = (1 - w_i) dr/du,

    so that at a step with w_i = 1 the negative embedding has no effect and gets no gradient. Plain guidance is affine
    in the outputs with coefficients that sum to one; hence it means the same for a model that predicts the noise, v,
    x_0 or the velocity of flow matching: each is an affine function of the noise at fixed x_t.
    """

    scale: float | Tensor
    """w of all steps; or w_i of each, (T,) float64 on the CPU."""
    rescale: Rescale | None = None
    """r, differentiable in u; None where it is u itself. It treats each sample by itself."""

    def __call__(self, noise_negative: Tensor, noise_prompt: Tensor, step: int | Tensor) -> Tensor:
        """The guided output e, (B, C, H, W).

        Args:
            noise_negative: e_n, (B, C, H, W).
            noise_prompt: e_c, (B, C, H, W).
            step: i; or one for each sample, (B,) int64 on the CPU.
        """
        w = factor(self.scale, step, noise_prompt) if isinstance(self.scale, Tensor) else self.scale
        guided = guide(noise_negative, noise_prompt, w)
        if self.rescale is None:
            return guided
        rescaled = self.rescale(guided, noise_prompt)
        return torch.where(w == 1, guided, rescaled) if isinstance(w, Tensor) else rescaled

    def at(self, step: int) -> float:
        """w_i."""
        return float(self.scale[step] if isinstance(self.scale, Tensor) else self.scale)


def guide(noise_negative: Tensor, noise_prompt: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Eq. 5, plain: e = e_n + w (e_c - e_n), so that de / de_n = 1 - w.

    Args:
        noise_negative: e_n, (B, C, H, W).
        noise_prompt: e_c, (B, C, H, W).
        guidance_scale: w; as a tensor, one that broadcasts.

    Returns:
        e, (B, C, H, W).
    """
    return noise_negative + guidance_scale * (noise_prompt - noise_negative)
