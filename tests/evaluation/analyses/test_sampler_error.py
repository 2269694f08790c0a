from collections.abc import Sequence

import torch
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.evaluation.analyses.sampler_error import prediction_errors
from renege_ray.method import Guidance, Schedule, make_schedule
from renege_ray.sampling.images import Pair

S = 0.5  # standard deviation of the data
STEPS = 8
SAMPLING = SamplingConfig(num_inference_steps=STEPS, guidance_scale=3.0, gradient_steps=(0, 1))


class GaussianModel:
    """The exact model of data N(0, S^2), which predicts x_0 = E[x_0 | x_t], a multiple of x_t: no text matters."""

    latent_shape = (4, 16, 16)
    device = torch.device("cpu")
    alphas = torch.linspace(0.999, 0.02, 100)

    def schedule(self, num_inference_steps: int) -> Schedule:
        return make_schedule(
            self.alphas, num_inference_steps, prediction_type="sample", timestep_spacing="leading", steps_offset=1,
            set_alpha_to_one=True,
        )  # fmt: skip

    def guidance(self, sampling: SamplingConfig, schedule: Schedule) -> Guidance:
        return Guidance(sampling.guidance_scale)

    def denoise(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        return posterior(self.alphas[timestep]) * latents


def posterior(a: Tensor) -> Tensor:
    """E[x_0 | x_t] / x_t."""
    return a.sqrt() * S**2 / (a * S**2 + 1 - a)


def test_errors_of_gaussian_data_are_those_in_closed_form() -> None:
    """Both samplers are linear maps of independent normal numbers, whose covariance with the end is a product."""
    model = GaussianModel()
    schedule = model.schedule(STEPS)
    pairs = [Pair("", seed) for seed in range(24)]
    n = torch.zeros(1, 2, 3)

    def encoded(prompts: Sequence[str]) -> Tensor:
        return n.expand(len(prompts), -1, -1)

    a, b = schedule.signal.square(), schedule.next_signal.square()
    k = posterior(a)
    ddim = b.sqrt() * k + (1 - b).sqrt() * (1 - a.sqrt() * k) / (1 - a).sqrt()  # x' = ddim x
    ratio = a / b
    ddpm = b.sqrt() * (1 - ratio) / (1 - a) * k + ratio.sqrt() * (1 - b) / (1 - a)  # x' = ddpm x + fresh noise
    fresh = (1 - b) / (1 - a) * (1 - ratio)

    def expected(factor: Tensor, variance: Tensor) -> Tensor:
        errors = []
        for i in range(STEPS):
            at_i = torch.ones((), dtype=torch.float64)  # Var x_i
            for j in range(i):
                at_i = factor[j] ** 2 * at_i + variance[j]
            rest = (factor[i:].prod() - k[i]) ** 2 * at_i
            rest += sum(variance[j] * factor[j + 1 :].prod() ** 2 for j in range(i, STEPS))
            errors.append(rest.sqrt())
        return torch.stack(errors)

    for sampler, curve in (("DDIM", expected(ddim, 0 * fresh)), ("DDPM", expected(ddpm, fresh))):
        errors = prediction_errors(model, n, pairs, encoded, SAMPLING, sampler)
        assert errors.shape == (24, STEPS) and errors.dtype == torch.float64
        measured = errors.square().mean(dim=0).sqrt()
        torch.testing.assert_close(measured, curve, rtol=0.03, atol=1e-4)  # 24,576 numbers
        alone = prediction_errors(model, n, pairs[5:6], encoded, SAMPLING, sampler)
        torch.testing.assert_close(alone[0], errors[5])  # the fresh noise is a pair's own
    assert (expected(ddpm, fresh)[2:-1] > expected(ddim, 0 * fresh)[2:-1]).all()
