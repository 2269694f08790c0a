import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from renege_ray.errors import UserError
from renege_ray.method import Schedule, make_schedule

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def schedule_like(scheduler: DDIMScheduler | DDPMScheduler, steps: int) -> Schedule:
    config = scheduler.config
    return make_schedule(
        scheduler.alphas_cumprod,
        steps,
        prediction_type=config.prediction_type,
        timestep_spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
        set_alpha_to_one=config.get("set_alpha_to_one", True),
        clip_range=config.clip_sample_range if config.clip_sample else None,
    )


def tensors(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("training_steps", [1000, 77])
def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(spacing: str, training_steps: int) -> None:
    scheduler = DDIMScheduler(training_steps, timestep_spacing=spacing, **BETAS)
    for steps in range(1, training_steps + 1):
        scheduler.set_timesteps(steps)
        # For some T diffusers' "trailing" has a (T + 1)-th timestep, -1, by rounding; it is none.
        assert schedule_like(scheduler, steps).timesteps.tolist() == scheduler.timesteps.tolist()[:steps]


@pytest.mark.parametrize(
    ("prediction", "spacing", "zero_snr", "alpha_to_one"),
    list(itertools.product(PREDICTIONS, SPACINGS, (False, True), (False, True))),
)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_ddim_and_x0_agree_with_diffusers(
    prediction: str, spacing: str, zero_snr: bool, alpha_to_one: bool, steps: int
) -> None:
    scheduler = DDIMScheduler(
        prediction_type=prediction,
        timestep_spacing=spacing,
        rescale_betas_zero_snr=zero_snr,
        set_alpha_to_one=alpha_to_one,
        steps_offset=1,
        **BETAS,
    )
    scheduler.set_timesteps(steps)
    if prediction == "epsilon" and zero_snr and scheduler.alphas_cumprod[scheduler.timesteps[0]] == 0:
        with pytest.raises(UserError, match="zero terminal SNR"):
            schedule_like(scheduler, steps)
        return
    schedule = schedule_like(scheduler, steps)
    assert len(schedule) == steps
    assert schedule.timesteps.dtype == torch.int64
    for factors in (schedule.signal, schedule.sigma, schedule.next_signal, schedule.next_sigma):
        assert factors.shape == (steps,) and factors.dtype == torch.float64
    x, *outputs = tensors(steps + 1)
    for i, output in enumerate(outputs):
        x = x / x.std()  # keeps random outputs from growing, so that absolute differences mean something
        expected = scheduler.step(output, scheduler.timesteps[i], x)
        x0, noise = schedule.split(output, x, i)
        assert x0.dtype == torch.float32
        torch.testing.assert_close(x0, expected.pred_original_sample, atol=1e-4, rtol=1e-4)
        x = schedule.step(x0, noise, i)
        torch.testing.assert_close(x, expected.prev_sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clipping_is_that_of_diffusers(prediction: str) -> None:
    """x_0 is kept within the range; the noise that it is put together with is not made to agree."""
    scheduler = DDIMScheduler(prediction_type=prediction, **(BETAS | {"clip_sample": True, "clip_sample_range": 0.7}))
    scheduler.set_timesteps(7)
    schedule = schedule_like(scheduler, 7)
    x, output = tensors(2)
    expected = scheduler.step(output, scheduler.timesteps[3], x)
    x0, noise = schedule.split(output, x, 3)
    assert x0.abs().max() == pytest.approx(0.7)
    torch.testing.assert_close(schedule.step(x0, noise, 3), expected.prev_sample)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_ddpm_agrees_with_diffusers(prediction: str, spacing: str, zero_snr: bool) -> None:
    scheduler = DDPMScheduler(
        prediction_type=prediction, timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr, **BETAS
    )
    scheduler.set_timesteps(10)
    previous = torch.tensor([int(scheduler.previous_timestep(t)) for t in scheduler.timesteps])
    alphas = scheduler.alphas_cumprod.double()
    a, next_a = alphas[scheduler.timesteps], torch.where(previous >= 0, alphas[previous], 1.0)
    schedule = Schedule(
        timesteps=scheduler.timesteps,
        signal=a.sqrt(),
        sigma=(1 - a).sqrt(),
        next_signal=next_a.sqrt(),
        next_sigma=(1 - next_a).sqrt(),
        prediction_type=prediction,
    )
    x, *outputs = tensors(11)
    for i, (t, output) in enumerate(zip(scheduler.timesteps, outputs, strict=True)):
        if a[i] == 0 and prediction == "epsilon":
            continue
        x = x / x.std()
        expected = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(i))
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(i))
        x0, _ = schedule.split(output, x, i)
        x = schedule.ancestral_step(x, x0, noise, i)
        torch.testing.assert_close(x, expected.prev_sample, atol=1e-4, rtol=1e-4)


def test_the_three_predictions_of_one_truth_agree() -> None:
    x0, noise = (tensor.double() for tensor in tensors(2))
    a = torch.tensor(0.3, dtype=torch.float64)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
    v = a.sqrt() * noise - (1 - a).sqrt() * x0
    for prediction, output in {"epsilon": noise, "v_prediction": v, "sample": x0}.items():
        schedule = make_schedule(
            a[None], 1, prediction_type=prediction, timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True
        )
        got_x0, got_noise = schedule.split(output, x_t, 0)
        torch.testing.assert_close(got_x0, x0)
        torch.testing.assert_close(got_noise, noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_inference_steps": 0}, "1 to 1000"),
        ({"num_inference_steps": 1001}, "1 to 1000"),
        ({"num_inference_steps": 1000, "steps_offset": 1}, "starts at timestep 1000"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"timestep_spacing": "karras"}, "karras"),
    ],
)
def test_what_cannot_be_sampled_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "num_inference_steps": 10,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    } | change
    with pytest.raises(UserError, match=message):
        make_schedule(DDIMScheduler(**BETAS).alphas_cumprod, **arguments)
