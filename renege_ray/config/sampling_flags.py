"""The flags of commands that make images and learn nothing: a model and how to sample, from a preset."""

import argparse
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from renege_ray.config.preset_choice import choose_preset
from renege_ray.config.run import RunConfig, load_preset, parse_config, to_mapping
from renege_ray.output.folder import check_output_dir
from renege_ray.output.paths import absolute_path


def add_sampling_flags(parser: argparse.ArgumentParser, job: str) -> None:
    """Add the flags that `sampling_config` reads."""
    add = parser.add_argument
    words = "where the settings below come from (default: toy, or that of the family of --model)"
    add("--preset", metavar="NAME|FILE", help=words)
    add("--model", metavar="ID", help="'toy', 'toy2', a folder in diffusers format, or a Hub id")
    add("--guidance-scale", type=number, metavar="W", help="as the model's pipeline has it; above 1, as a rule")
    add("--num-inference-steps", type=int, metavar="T", help="sampler steps")
    add("--output-dir", type=absolute_path, metavar="DIR", help=f"default: outputs/{job}-DATE-TIME")


def sampling_config(given: argparse.Namespace, job: str, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """The preset with the flags that were given, and with `settings`; nothing is made yet.

    Raises:
        UserError: a setting is out of its range, or the output folder cannot be used.
    """
    data = to_mapping(load_preset(given.preset or choose_preset(given.model))) | dict(settings or {})
    data["output_dir"] = str(given.output_dir or f"outputs/{job}-{datetime.now():%Y%m%d-%H%M%S}")
    if given.model is not None:
        data["model"]["id"] = given.model
    if given.guidance_scale is not None:
        data["sampling"]["guidance_scale"] = given.guidance_scale
    if given.num_inference_steps is not None:
        data["sampling"]["num_inference_steps"] = given.num_inference_steps
        if given.num_inference_steps >= 1:  # no gradients are taken here: any range will do
            data["sampling"]["gradient_steps"] = [0, 1]
            data["optim"]["gradients_per_rollout"] = data["tuning"]["gradients_per_rollout"] = 1
    config = parse_config(data)
    check_output_dir(config.output_dir, resume=False)
    return config


def whole(text: str, least: int = 0) -> int:
    """A whole number from `least` up."""
    if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    return whole(text, 1)


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
