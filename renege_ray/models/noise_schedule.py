"""The noise schedule of a model, as its own scheduler makes it, taken in deterministic steps.

A model that predicts noise, v or x_0: deterministic DDIM over whatever scheduler it comes with. The schedule is that of
`DDIMScheduler.from_config` of the model's own scheduler; so images equal those of the pipeline with that scheduler. One
thing is not left to its default: x_0 is clipped only where the model's own scheduler says so, since +-1 bounds pixels,
not latents (`DDIMScheduler.from_config(config, clip_sample=False)` where the configuration is silent).

A flow-matching model: Euler's steps over the noise levels that its own scheduler makes, shifted as that says. Images
equal those of the pipeline where the scheduler is FlowMatchEulerDiscreteScheduler; of solvers of higher order, the
noise levels are taken, and the steps are Euler's.
"""

from copy import deepcopy
from typing import Any

from diffusers import DDIMScheduler

from renege_ray.errors import UserError, first_line
from renege_ray.method.schedule import Schedule, flow_schedule, make_schedule

EULER = "FlowMatchEulerDiscreteScheduler"
FLOW_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # over the same noise levels, where told so


def ddim_of(scheduler: Any, model: str) -> DDIMScheduler:
    """The DDIM scheduler over a scheduler's noise schedule.

    Args:
        scheduler: any of diffusers'.
        model: what the user called the model.

    Raises:
        UserError: it has no DDIM form (it is a flow-matching model's, say), or bounds x_0 in a way that is made for
            pixels.
    """
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if "beta_schedule" not in scheduler.config or prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"model {model!r}: its scheduler {type(scheduler).__name__} (prediction type {prediction_type!r}) "
            "has no DDIM form; use a model that predicts noise, v or x_0"
        )
    if scheduler.config.get("thresholding", False):
        raise UserError(
            f"model {model!r}: its scheduler asks for dynamic thresholding, which is made for pixels and spoils "
            "latents; set thresholding to false in scheduler/scheduler_config.json"
        )
    return DDIMScheduler.from_config(scheduler.config, clip_sample=scheduler.config.get("clip_sample", False))


def schedule_of(scheduler: DDIMScheduler, num_inference_steps: int) -> Schedule:
    """The schedule in T steps; see `make_schedule` for the errors."""
    config = scheduler.config
    return make_schedule(
        scheduler.alphas_cumprod,
        num_inference_steps,
        prediction_type=config.prediction_type,
        timestep_spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
        set_alpha_to_one=config.set_alpha_to_one,
        clip_range=config.clip_sample_range if config.clip_sample else None,
    )


def flow_of(scheduler: Any, model: str) -> Any:
    """The scheduler itself, if it is one of flow matching whose steps can be Euler's.

    Args:
        scheduler: any of diffusers'.
        model: what the user called the model.

    Raises:
        UserError: it is not, draws noise at each step, or goes from the clean end to the noisy one.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    flowing = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas", False)
    if kind != EULER and not (kind in FLOW_SOLVERS and flowing):
        raise UserError(
            f"model {model!r}: its scheduler {kind} (prediction type {config.get('prediction_type')!r}) is not one of "
            f"flow matching, which its denoiser was trained for; put {EULER}, or {' or '.join(FLOW_SOLVERS)} with "
            "prediction_type flow_prediction and use_flow_sigmas, into scheduler/scheduler_config.json"
        )
    for setting, why in (
        ("stochastic_sampling", "draws fresh noise at each step, where sampling has to be deterministic"),
        ("invert_sigmas", "goes from the clean end to the noisy one"),
        ("thresholding", "bounds x_0 in a way that is made for pixels and spoils latents"),
    ):
        if config.get(setting, False):
            raise UserError(
                f"model {model!r}: its scheduler {kind} has {setting}: it {why}; set {setting} to false in "
                "scheduler/scheduler_config.json"
            )
    return scheduler


def sampled_otherwise(scheduler: Any) -> str:
    """What is to be said of a flow-matching scheduler whose steps are not taken as it would take them; else empty."""
    kind = type(scheduler).__name__
    return "" if kind == EULER else f"sampled by Euler's steps over the noise levels of its own {kind}"


def shift_of_resolution(scheduler: Any, tokens: int, *, max_shift: float = 1.15) -> float:
    """mu of a shift that depends on the size of an image: `calculate_shift` of diffusers' pipelines.

    Args:
        scheduler: its configuration has the two sizes and the shift at each.
        tokens: of the image in the transformer.
        max_shift: what the pipeline takes where the configuration is silent.
    """
    config = scheduler.config
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base = config.get("base_shift", 0.5)
    slope = (config.get("max_shift", max_shift) - base) / (most - least)
    return float(tokens * slope + (base - slope * least))


def flow_schedule_of(scheduler: Any, num_inference_steps: int, **arguments: Any) -> Schedule:
    """The schedule of a `flow_of` scheduler in T steps.

    Args:
        scheduler: left as it is.
        num_inference_steps: T.
        arguments: what else the family's pipeline gives to its `set_timesteps`: sigmas, mu.

    Raises:
        UserError: T outside 1..N, or noise levels that do not descend to a state that is clean, or nearly so.
    """
    most = int(scheduler.config.num_train_timesteps)
    if not 1 <= num_inference_steps <= most:
        raise UserError(f"num_inference_steps {num_inference_steps} is outside the schedule: use 1 to {most}")
    own = deepcopy(scheduler)
    try:
        own.set_timesteps(num_inference_steps, **arguments)
        return flow_schedule(own.sigmas, own.timesteps)
    except (ValueError, ImportError, AssertionError) as error:
        raise UserError(
            f"num_inference_steps {num_inference_steps}: the scheduler {type(scheduler).__name__} of the model makes "
            f"no schedule of so many steps ({first_line(error)})"
        ) from error
