"""The noise schedule of a model: deterministic DDIM over whatever scheduler the model comes with.

The schedule is that of `DDIMScheduler.from_config` of the model's own scheduler; so images equal those of the pipeline
with that scheduler. One thing is not left to its default: x_0 is clipped only where the model's own scheduler says so,
since +-1 bounds pixels, not latents (`DDIMScheduler.from_config(config, clip_sample=False)` where the configuration is
silent).
"""

from typing import Any

from diffusers import DDIMScheduler

from renege_ray.errors import UserError
from renege_ray.method.schedule import Schedule, make_schedule


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
