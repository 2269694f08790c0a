"""How strongly the final latents of the sampler hang on parameters: products with the Jacobian, and so its norm.

    z_{i+1} = F_i(z_i, p)     i = 0 .. T-1: one guided step each, from noise z_0 = x_T to the final latents z_T
    J       = d z_T / d p     (C H W, dim p) of one sample, through all T steps; p: n, or the denoiser's weights

J is too large to be written down. A row vector times it is had by "iterative backpropagation" (Sec. 4.1), in the memory
of one step:

    l_T = v,      l_i = l_{i+1} dF_i/dz,      v J = sum over i of l_{i+1} dF_i/dp

and its Frobenius norm by random probes (Hutchinson 1990): for independent signs v, E |v J|^2 = |J|_F^2, with variance
2 (|J J'|_F^2 - |diag J J'|^2).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from renege_ray.method.guidance import Guidance
from renege_ray.method.rollout import Denoiser, both_branches, guided_x0_and_noise
from renege_ray.method.schedule import Schedule


def probe_jacobian(
    denoiser: Denoiser,
    states: Mapping[int, Tensor],
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    schedule: Schedule,
    guidance: Guidance,
    probe: Tensor,
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """v J for each of the parameters, by backpropagation through one step after the other.

    What samples share gets the sum of their products: where the probes of the samples are independent, the squared norm
    of the sum has the sum of their |J|_F^2 as its mean.

    Args:
        denoiser: the model.
        states: z_i of every step, (B, C, H, W) each: what a `rollout` has kept.
        prompt_embeds: c, (B, L, D).
        negative_prompt_embeds: n, (1 | B, L, D).
        schedule: T steps.
        guidance: Eq. 5, of each step.
        probe: v, (B, C, H, W).
        parameters: leaves that require gradients: n, weights of the denoiser, or both.

    Returns:
        A tensor of the shape of each parameter; zeros where it has no effect.
    """
    adjoint = probe
    totals = [torch.zeros_like(p) for p in parameters]
    for i in reversed(range(len(schedule))):
        with torch.enable_grad():
            z = states[i].detach().requires_grad_()
            embeds = both_branches(negative_prompt_embeds, prompt_embeds)
            x0, noise = guided_x0_and_noise(denoiser, z, i, embeds, schedule, guidance)
            following = schedule.step(x0, noise, i)
        adjoint, *products = torch.autograd.grad(following, [z, *parameters], adjoint, materialize_grads=True)
        for total, product in zip(totals, products, strict=True):
            total += product
    return totals
