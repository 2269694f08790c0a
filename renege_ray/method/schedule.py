"""The noise schedule, the prediction of x_0 (Eq. 6) and the steps of DDIM and DDPM.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,      e ~ N(0, 1),      a_t = alphas_cumprod[t]

Everything is indexed by the step i = 0 .. T-1 of the sampler, 0 being the noisiest. Step i goes from timestep
t_i with a = a_{t_i} to a' = a_{t_i - N // T}, where N is the number of training timesteps (the rule of
diffusers' DDIMScheduler: for some spacings t_i - N // T is not t_{i+1}, and images agree with diffusers' only
if this is kept).

The scalars a and a' are float64 tensors on the CPU without dimensions: they keep the dtype of the latents
that they multiply, and on a GPU they are arguments of the kernel, not something to wait for.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from renege_ray.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class Schedule:
    """What a sampler of T steps needs to know of the noise schedule.

    Attributes:
        timesteps: t_i, (T,) int64, descending.
        alphas: a at t_i, (T,) float64.
        previous_alphas: a' that step i leads to, (T,) float64.
        prediction_type: what the model's output means.
        clip_range: x_0 is kept within plus and minus this; None where it is not (latent models, as a rule).
    """

    timesteps: Tensor
    alphas: Tensor
    previous_alphas: Tensor
    prediction_type: PredictionType
    clip_range: float | None = None

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.timesteps)


def make_schedule(
    alphas_cumprod: Tensor,
    num_inference_steps: int,
    *,
    prediction_type: str,
    timestep_spacing: str,
    steps_offset: int,
    set_alpha_to_one: bool,
    clip_range: float | None = None,
) -> Schedule:
    """Choose T of the N training timesteps, exactly as diffusers' DDIMScheduler does.

    Args:
        alphas_cumprod: a_t of training, (N,), any float dtype.
        num_inference_steps: T.
        prediction_type: "epsilon", "v_prediction" or "sample".
        timestep_spacing: "leading", "trailing" or "linspace" (Lin et al. 2023, Table 2).
        steps_offset: added to every timestep under "leading".
        set_alpha_to_one: whether the last step leads to a' = 1 (a clean image) or to a_0.
        clip_range: bound of x_0, if there is one.

    Raises:
        UserError: T outside 1..N, an unknown type or spacing, an offset that leaves the schedule, or a model
            that predicts noise at a_t = 0 (zero terminal SNR), where Eq. 6 is 0 / 0.
    """
    training_steps, steps = len(alphas_cumprod), num_inference_steps
    if prediction_type not in get_args(PredictionType):
        known = get_args(PredictionType)
        raise UserError(f"prediction_type {prediction_type!r} is not supported: use one of {known}")
    if not 1 <= steps <= training_steps:
        raise UserError(f"num_inference_steps {steps} is outside the schedule: use 1 to {training_steps}")
    timesteps = _timesteps(training_steps, steps, timestep_spacing, steps_offset)
    if timesteps[0] >= training_steps:
        raise UserError(
            f"num_inference_steps {steps} with steps_offset {steps_offset} starts at timestep "
            f"{timesteps[0]}, but the schedule ends at {training_steps - 1}: use fewer steps"
        )
    alphas_cumprod = alphas_cumprod.detach().to("cpu", torch.float64)
    final_alpha = alphas_cumprod.new_ones(()) if set_alpha_to_one else alphas_cumprod[0]
    targets = [t - training_steps // steps for t in timesteps]
    alphas = alphas_cumprod[timesteps]
    if prediction_type == "epsilon" and (alphas == 0).any():
        raise UserError(
            "prediction_type 'epsilon' cannot start at zero terminal SNR (x_0 = 0 / 0): "
            "use timestep_spacing 'leading' or a model that predicts v or x_0"
        )
    return Schedule(
        timesteps=torch.tensor(timesteps, dtype=torch.int64),
        alphas=alphas,
        previous_alphas=torch.stack([alphas_cumprod[t] if t >= 0 else final_alpha for t in targets]),
        prediction_type=prediction_type,  # type: ignore[arg-type]  # checked above
        clip_range=clip_range,
    )


def _timesteps(training_steps: int, steps: int, spacing: str, offset: int) -> list[int]:
    """t_i, descending, by the three rules of Lin et al. 2023, Table 2."""
    if spacing == "leading":
        ratio = training_steps // steps
        return [i * ratio + offset for i in reversed(range(steps))]
    if spacing == "trailing":
        # numpy.arange(N, 0, -N / T) goes on by the difference of its first two elements, not by N / T, and
        # which way a half is rounded hangs on the last bit of it.
        stride = (training_steps - training_steps / steps) - training_steps
        return [round(training_steps + i * stride) - 1 for i in range(steps)]
    if spacing == "linspace":
        stride = (training_steps - 1) / max(steps - 1, 1)
        return [round(i * stride) for i in reversed(range(steps))]
    raise UserError(f"timestep_spacing {spacing!r} is not supported: use one of {get_args(TimestepSpacing)}")


def predict_x0_and_noise(
    model_output: Tensor,
    latents: Tensor,
    alpha: Tensor,
    prediction_type: PredictionType,
    clip_range: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 6: the clean latents and the noise that the model's output implies at x_t.

        epsilon:       e = output     x_0 = (x_t - sqrt(1 - a) e) / sqrt(a)
        v_prediction:  v = output     x_0 = sqrt(a) x_t - sqrt(1 - a) v     e = sqrt(a) v + sqrt(1 - a) x_t
        sample:        x_0 = output   e = (x_t - sqrt(a) x_0) / sqrt(1 - a)

    Args:
        model_output: guided output of the denoiser, (B, C, H, W).
        latents: x_t, (B, C, H, W).
        alpha: a, a scalar, or one for each sample, (B,).
        prediction_type: which of the three.
        clip_range: bound of x_0, if there is one; e is left as it is.

    Returns:
        (x_0, e), both (B, C, H, W).
    """
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    if alpha.ndim:  # unlike a scalar, a tensor would impose its own dtype and has to be on the same device
        signal, sigma = (factor.to(latents).view(-1, *[1] * (latents.ndim - 1)) for factor in (signal, sigma))
    if prediction_type == "epsilon":
        x0, noise = (latents - sigma * model_output) / signal, model_output
    elif prediction_type == "v_prediction":
        x0, noise = signal * latents - sigma * model_output, signal * model_output + sigma * latents
    else:
        x0, noise = model_output, (latents - signal * model_output) / sigma
    return x0 if clip_range is None else x0.clamp(-clip_range, clip_range), noise


def ddim_step(x0: Tensor, noise: Tensor, previous_alpha: Tensor) -> Tensor:
    """One deterministic step, x' = sqrt(a') x_0 + sqrt(1 - a') e (Song et al. 2021, Eq. 12 with sigma = 0).

    Args:
        x0: x_0, (B, C, H, W).
        noise: e, (B, C, H, W).
        previous_alpha: a', a scalar.

    Returns:
        x', (B, C, H, W).
    """
    return previous_alpha.sqrt() * x0 + (1 - previous_alpha).sqrt() * noise


def ddpm_step(latents: Tensor, x0: Tensor, alpha: Tensor, previous_alpha: Tensor, noise: Tensor) -> Tensor:
    """One ancestral step, a draw from q(x' | x_t, x_0) (Ho et al. 2020, Eq. 6 and 7).

        mean     = sqrt(a') (1 - a/a') / (1 - a) x_0  +  sqrt(a/a') (1 - a') / (1 - a) x_t
        variance = (1 - a') / (1 - a) (1 - a/a')

    Args:
        latents: x_t, (B, C, H, W).
        x0: x_0, (B, C, H, W).
        alpha: a, a scalar.
        previous_alpha: a', a scalar.
        noise: a fresh draw of N(0, 1), (B, C, H, W); it is not used up at the last step, where a' = 1.

    Returns:
        x', (B, C, H, W).
    """
    ratio = alpha / previous_alpha
    mean_x0 = previous_alpha.sqrt() * (1 - ratio) / (1 - alpha)
    mean_latents = ratio.sqrt() * (1 - previous_alpha) / (1 - alpha)
    variance = (1 - previous_alpha) / (1 - alpha) * (1 - ratio)
    return mean_x0 * x0 + mean_latents * latents + variance.sqrt() * noise
