"""What of a training fits on the cards that `--memory` names, by the models' configuration files."""

from copy import copy

import torch

from renege_ray.cluster.flops import ShapedModel
from renege_ray.config.run import RunConfig
from renege_ray.models.base import TextToImage
from renege_ray.rewards.catalogue import REWARDS, VIDEO_METRICS, RewardFacts, full_name
from renege_ray.sampling.memory import RESERVE, TIERS, plan_within

GIB = 2**30


def describe_tiers(config: RunConfig, shaped: ShapedModel) -> str:
    """A line: the samples that a worker computes at once on each card, and the GiB that all of it takes."""
    dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
    weights, reading = weights_gib(config, shaped, dtype), reading_gib(config, shaped, dtype)
    model = copy(shaped.model)
    model.dtype = dtype
    tiers = [
        f"{name} {_fit(size * 1e9 / GIB - RESERVE, weights, reading, model, config)}" for name, size in TIERS.items()
    ]
    return (
        f"at most so many samples at once on a card: {', '.join(tiers)}; by count, "
        f"in {str(dtype).removeprefix('torch.')}, with {weights:.1f} GiB of weights"
        f" and, while prompts are read, {reading:.1f} GiB of a text encoder or tower"
    )


def _fit(gib: float, weights: float, reading: float, model: TextToImage, config: RunConfig) -> str:
    """Prompts are read before gradients are taken: what is needed is the larger of both."""
    plan = plan_within(gib - weights, "auto", model, config.rewards.train)
    if max(plan.needed(1), reading) > plan.available:
        return "none"
    samples = plan.samples()
    peak = weights + max(plan.needed(samples), reading)
    return f"{samples}{' recomputed' if plan.saving else ''} ({peak:.1f} GiB)"


def weights_gib(config: RunConfig, shaped: ShapedModel, dtype: torch.dtype) -> float:
    """GiB of all that a worker of a training keeps on its accelerator."""
    return shaped.numbers() * dtype.itemsize / GIB + sum(facts.gib for facts in _rewards(config))


def reading_gib(config: RunConfig, shaped: ShapedModel, dtype: torch.dtype) -> float:
    """GiB of what comes beside these while prompts are read: the text encoders, then the text tower of each reward."""
    encoders = shaped.encoder_numbers() * dtype.itemsize / GIB
    return max([encoders, *(facts.text_gib for facts in _rewards(config))])


def _rewards(config: RunConfig) -> list[RewardFacts]:
    names = {full_name(name) for name in (*config.rewards.train, *config.rewards.held_out, *config.rewards.judges)}
    known = REWARDS | VIDEO_METRICS
    return [known[name] for name in names if name in known]
