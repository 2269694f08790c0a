"""Flow matching's schedules against diffusers' own schedulers, step by step."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from renege_ray.errors import UserError
from renege_ray.models.noise_schedule import ddim_of, flow_of, flow_schedule_of, sampled_otherwise

STEPS = 7
LTX = "a last noise level (LTX)"  # which a single step, the first, cannot have
EULERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no shift": ({}, {}),
    "a static shift (SD3)": ({"shift": 3.0}, {}),
    "a shift by resolution (SD3.5, Qwen-Image)": ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    "a linear shift": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.5}),
    "sigmas of the pipeline's (Lumina2)": ({"shift": 6.0}, {"sigmas": np.linspace(1.0, 1 / STEPS, STEPS)}),
    LTX: ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, {"mu": 1.4}),
    "karras": ({"shift": 3.0, "use_karras_sigmas": True}, {}),
    "exponential": ({"use_exponential_sigmas": True}, {}),
    "beta": ({"use_beta_sigmas": True}, {}),
}

CASES = [(name, steps) for name in EULERS for steps in (1, STEPS) if (name, steps) != (LTX, 1)]


def tensors(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("name", "steps"), [(name, steps) for name in EULERS for steps in (1, STEPS) if (name, steps) != (LTX, 1)]
)
def test_steps_are_those_of_flow_matching(name: str, steps: int) -> None:
    settings, arguments = EULERS[name]
    if "sigmas" in arguments:
        arguments = {"sigmas": arguments["sigmas"][:steps]}
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    schedule = flow_schedule_of(flow_of(scheduler, "tiny"), steps, **arguments)
    scheduler.set_timesteps(steps, **arguments)
    assert torch.equal(schedule.timesteps, scheduler.timesteps) and len(schedule) == steps
    torch.testing.assert_close(schedule.signal + schedule.sigma, torch.ones(steps, dtype=torch.float64))
    x, *outputs = tensors(1 + steps)
    ours = x
    for i, (t, v) in enumerate(zip(scheduler.timesteps, outputs, strict=True)):
        x0, e = schedule.split(v, ours, i)
        torch.testing.assert_close(e - x0, v, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(schedule.signal[i] * x0 + schedule.sigma[i] * e, ours, atol=1e-5, rtol=1e-5)
        x, ours = scheduler.step(v, t, x).prev_sample, schedule.step(x0, e, i)
        torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)
    rows = schedule.split(v, ours, torch.tensor([0, steps - 1]))
    for row, i in enumerate((0, steps - 1)):
        alone = schedule.split(v, ours, i)
        assert all(torch.equal(a[row], b[row]) for a, b in zip(rows, alone, strict=True))


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_solvers_of_higher_order_lend_their_noise_levels(kind: type) -> None:
    """Of the first order, DPM-Solver is Euler; so are the levels of Sana and Wan taken as they are."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    schedule = flow_schedule_of(flow_of(kind(**flow), "tiny"), STEPS)
    assert "Euler" in sampled_otherwise(kind(**flow)) and not sampled_otherwise(FlowMatchEulerDiscreteScheduler())
    first = kind(**flow, solver_order=1)
    first.set_timesteps(STEPS)
    x, *outputs = tensors(1 + STEPS)
    ours = x
    for i, (t, v) in enumerate(zip(first.timesteps, outputs, strict=True)):
        assert schedule.timesteps[i] == t
        if kind is DPMSolverMultistepScheduler:
            x = first.step(v, t, x).prev_sample
            ours = schedule.step(*schedule.split(v, ours, i), i)
            torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.sigma.float(), first.sigmas[:-1])
    assert schedule.next_sigma[-1] == 0


def test_a_draw_from_the_posterior_of_flow_matching_has_the_marginals_of_its_path() -> None:
    schedule = flow_schedule_of(FlowMatchEulerDiscreteScheduler(shift=3.0), STEPS)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((200_000,), 0.7, dtype=torch.float64)
    noise, fresh = torch.randn(2, 200_000, dtype=torch.float64, generator=generator)
    i = 3
    x = schedule.signal[i] * x0 + schedule.sigma[i] * noise
    following = schedule.ancestral_step(x, x0, fresh, i)
    assert following.mean().item() == pytest.approx(0.7 * schedule.next_signal[i].item(), abs=0.01)
    assert following.std().item() == pytest.approx(schedule.next_sigma[i].item(), rel=0.01)


@pytest.mark.parametrize(
    ("scheduler", "word"),
    [
        (DDIMScheduler(), "not one of flow matching"),
        (DPMSolverMultistepScheduler(), "not one of flow matching"),
        (UniPCMultistepScheduler(prediction_type="flow_prediction"), "use_flow_sigmas"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ],
)
def test_other_schedulers_are_refused(scheduler: Any, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        flow_of(scheduler, "mine")
    assert "'mine'" in str(caught.value) and "\n" not in str(caught.value)


def test_flow_matching_has_no_ddim_form() -> None:
    with pytest.raises(UserError, match="no DDIM form"):
        ddim_of(FlowMatchEulerDiscreteScheduler(), "mine")


def test_schedules_that_cannot_be_are_refused() -> None:
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"num_inference_steps {steps} .*1 to 1000"):
            flow_schedule_of(FlowMatchEulerDiscreteScheduler(), steps)
    settings, arguments = EULERS[LTX]
    with pytest.raises(UserError, match="no schedule"), np.errstate(invalid="ignore"):
        flow_schedule_of(FlowMatchEulerDiscreteScheduler(**settings), 1, **arguments)
    with pytest.raises(UserError, match="no schedule"):  # mu is missing
        flow_schedule_of(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 3)
    karras = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_karras_sigmas=True, use_dynamic_shifting=False
    )
    with pytest.raises(UserError, match="no schedule"):  # these are noise levels of another kind, above 1
        flow_schedule_of(flow_of(karras, "mine"), 5)
