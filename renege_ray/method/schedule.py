"""The noise schedule: what a state of the sampler is made of, the prediction of x_0 (Eq. 6), and the steps.

    x = signal x_0 + sigma e,      e ~ N(0, 1),      x' = signal' x_0 + sigma' e

Step i = 0 .. T-1, 0 being the noisiest, goes from x to x'.

Diffusion models preserve the variance: signal = sqrt(a) and sigma = sqrt(1 - a) with a = alphas_cumprod[t]; the step is
DDIM's. It goes from timestep t_i to t_i - N // T, where N is the number of training timesteps (the rule of diffusers'
DDIMScheduler: for some spacings that is not t_{i+1}, and images agree with diffusers' only if this is kept).

Flow matching (Lipman et al. 2023; Liu et al. 2023) goes straight from e to x_0: signal = 1 - sigma, and the model
predicts the velocity v = e - x_0. The same step is then Euler's, x' = x + (sigma' - sigma) v.

The factors of a step are float64 tensors on the CPU without dimensions: they keep the dtype of the latents that they
multiply, and on a GPU they are arguments of the kernel, not something to wait for.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from renege_ray.errors import UserError

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A sampler of T steps."""

    timesteps: Tensor
    """t_i, what the model is told at step i; (T,) int64 or, of flow matching, float32, descending."""
    signal: Tensor
    """Of x, (T,) float64."""
    sigma: Tensor
    """Of x, (T,) float64."""
    next_signal: Tensor
    """signal' of the x' that step i leads to, (T,) float64."""
    next_sigma: Tensor
    """sigma' of that x', (T,) float64."""
    prediction_type: PredictionType
    """What the model's output means."""
    clip_range: float | None = None
    """x_0 is kept within plus and minus this; None where it is not (latent models, as a rule)."""

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.timesteps)

    def split(self, output: Tensor, x: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 6: the clean latents and the noise that the model's output implies at x.

            epsilon:       e = output     x_0 = (x - sigma e) / signal
            v_prediction:  v = output     x_0 = signal x - sigma v     e = signal v + sigma x   (signal^2 + sigma^2 = 1)
            sample:        x_0 = output   e = (x - signal x_0) / sigma
            flow:          v = output     x_0 = x - sigma v            e = x + signal v            (signal + sigma = 1)

        Args:
            output: guided output of the denoiser, (B, C, H, W).
            x: latents at the entrance of the step, (B, C, H, W).
            i: the step, or one for each sample, (B,) int64 on the CPU.

        Returns:
            (x_0, e), both (B, C, H, W); x_0 is clipped where the schedule says so, e is left as it is.
        """
        signal, sigma = factor(self.signal, i, x), factor(self.sigma, i, x)
        if self.prediction_type == "epsilon":
            x0, e = (x - sigma * output) / signal, output
        elif self.prediction_type == "v_prediction":
            x0, e = signal * x - sigma * output, signal * output + sigma * x
        elif self.prediction_type == "flow":
            x0, e = x - sigma * output, x + signal * output
        else:
            x0, e = output, (x - signal * output) / sigma
        return x0 if self.clip_range is None else x0.clamp(-self.clip_range, self.clip_range), e

    def step(self, x0: Tensor, e: Tensor, i: int | Tensor) -> Tensor:
        """The deterministic step to x' = signal' x_0 + sigma' e, that of DDIM (Song et al. 2021, Eq. 12) or Euler's."""
        return factor(self.next_signal, i, x0) * x0 + factor(self.next_sigma, i, x0) * e

    def ancestral_step(self, x: Tensor, x0: Tensor, fresh: Tensor, i: int | Tensor) -> Tensor:
        """A draw from q(x' | x, x_0): DDPM (Ho et al. 2020, Eq. 6 and 7; Kingma et al. 2021 for any signal and sigma).

            r    = signal / signal',      s^2 = sigma^2 - r^2 sigma'^2        x = r x' + s N(0, 1)
            mean = signal' s^2 / sigma^2 x_0  +  r sigma'^2 / sigma^2 x,      variance = s^2 sigma'^2 / sigma^2

        Args:
            x: latents at the entrance of the step, (B, C, H, W).
            x0: x_0, (B, C, H, W).
            fresh: a draw of N(0, 1), (B, C, H, W); it is not used up at the last step, where sigma' = 0.
            i: as in `split`.

        Returns:
            x', (B, C, H, W).
        """
        signal, sigma = factor(self.signal, i, x), factor(self.sigma, i, x)
        next_signal, next_sigma = factor(self.next_signal, i, x), factor(self.next_sigma, i, x)
        ratio = signal / next_signal
        variance = sigma.square() - (ratio * next_sigma).square()
        of_x0, of_x = next_signal * variance / sigma.square(), ratio * (next_sigma / sigma).square()
        return of_x0 * x0 + of_x * x + variance.sqrt() * next_sigma / sigma * fresh


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
        set_alpha_to_one: whether the last step leads to a = 1 (a clean image) or to a_0.
        clip_range: bound of x_0, if there is one.

    Raises:
        UserError: T outside 1..N, an unknown type or spacing, an offset that leaves the schedule, or a model
            that predicts noise at a_t = 0 (zero terminal SNR), where Eq. 6 is 0 / 0.
    """
    training_steps, steps = len(alphas_cumprod), num_inference_steps
    known = [kind for kind in get_args(PredictionType) if kind != "flow"]
    if prediction_type not in known:
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
    next_alphas = torch.stack([alphas_cumprod[t] if t >= 0 else final_alpha for t in targets])
    alphas = alphas_cumprod[timesteps]
    if prediction_type == "epsilon" and (alphas == 0).any():
        raise UserError(
            "prediction_type 'epsilon' cannot start at zero terminal SNR (x_0 = 0 / 0): "
            "use timestep_spacing 'leading' or a model that predicts v or x_0"
        )
    return Schedule(
        timesteps=torch.tensor(timesteps, dtype=torch.int64),
        signal=alphas.sqrt(),
        sigma=(1 - alphas).sqrt(),
        next_signal=next_alphas.sqrt(),
        next_sigma=(1 - next_alphas).sqrt(),
        prediction_type=prediction_type,  # type: ignore[arg-type]  # checked above
        clip_range=clip_range,
    )


def flow_schedule(sigmas: Tensor, timesteps: Tensor) -> Schedule:
    """The sampler of a flow-matching model from its noise levels.

    Args:
        sigmas: of the T states that steps start from, and of the one that the last step leads to; (T + 1,), within
            0 .. 1, descending.
        timesteps: what the model is told at each step, (T,).

    Raises:
        ValueError: they are not so.
    """
    sigmas = sigmas.detach().to("cpu", torch.float64)
    if len(sigmas) != len(timesteps) + 1 or not (sigmas.diff() < 0).all() or not 0 <= sigmas[-1] < sigmas[0] <= 1:
        raise ValueError(f"flow_schedule: {sigmas.tolist()} does not descend within 0..1 over {len(timesteps)} steps")
    return Schedule(
        timesteps=timesteps.detach().to("cpu"),
        signal=1 - sigmas[:-1],
        sigma=sigmas[:-1],
        next_signal=1 - sigmas[1:],
        next_sigma=sigmas[1:],
        prediction_type="flow",
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


def factor(factors: Tensor, i: int | Tensor, x: Tensor) -> Tensor:
    """The factor of a step, without dimensions; of a step for each sample, (B, 1, 1, 1) in the dtype and place of x."""
    found = factors[i]
    # Unlike a scalar, a tensor would impose its own dtype and has to be on the same device.
    return found.to(x, non_blocking=True).view(-1, *[1] * (x.ndim - 1)) if found.ndim else found
