"""Classifier-free guidance: the one line through which a negative embedding acts on an image.

Notation, used in all of `renege_ray.method`
    B, C, H, W   batch, latent channels, height, width          L, D   tokens, width of the text embedding
    c            prompt embedding            (B, L, D)           n      negative embedding   (1 | B, L, D)
    x_t          latents at timestep t       (B, C, H, W)        w      guidance scale
    a_t          alphas_cumprod[t]           scalar in [0, 1]    T      number of inference steps
    e_c, e_n     model output for c, for n   (B, C, H, W)
Equation numbers are those of the ReNeg paper.
"""

from torch import Tensor


def guide(noise_negative: Tensor, noise_prompt: Tensor, guidance_scale: float) -> Tensor:
    """Eq. 5: e = e_n + w (e_c - e_n).

    Hence de / de_n = 1 - w, and at w = 1 the negative embedding has no effect and gets no gradient. The
    formula is affine in the outputs with coefficients that sum to one, so that it means the same for a model
    that predicts the noise, v or x_0: each is an affine function of the noise at fixed x_t.

    Args:
        noise_negative: e_n, (B, C, H, W).
        noise_prompt: e_c, (B, C, H, W).
        guidance_scale: w.

    Returns:
        e, (B, C, H, W).
    """
    return noise_negative + guidance_scale * (noise_prompt - noise_negative)
