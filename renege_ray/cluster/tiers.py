"""What of a training fits on the cards that `--memory` names, by the models' configuration files."""

from copy import copy

import torch

from renege_ray.cluster.flops import ShapedModel
from renege_ray.config.run import RunConfig
from renege_ray.models.base import TextToImage
from renege_ray.rewards.catalogue import REWARDS, VIDEO_METRICS, full_name
from renege_ray.sampling.memory import RESERVE, TIERS, plan_within

GIB = 2**30


def describe_tiers(config: RunConfig, shaped: ShapedModel) -> str:
    """A line: the samples that a worker computes at once on each card, and the GiB that all of it takes."""
    dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
    weights = weights_gib(config, shaped, dtype)
    model = copy(shaped.model)
    model.dtype = dtype
    tiers = [f"{name} {_fit(size * 1e9 / GIB - RESERVE, weights, model)}" for name, size in TIERS.items()]
    return (
        f"at most so many samples at once on a card: {', '.join(tiers)}; by count, "
        f"in {str(dtype).removeprefix('torch.')}, with {weights:.1f} GiB of weights"
    )


def _fit(gib: float, weights: float, model: TextToImage) -> str:
    plan = plan_within(gib - weights, "auto", model)
    if plan.needed(1) > plan.available:
        return "none"
    samples = plan.samples()
    return f"{samples}{' recomputed' if plan.saving else ''} ({weights + plan.needed(samples):.1f} GiB)"


def weights_gib(config: RunConfig, shaped: ShapedModel, dtype: torch.dtype) -> float:
    """GiB of all that a worker of a training keeps on its accelerator."""
    names = {full_name(name) for name in (*config.rewards.train, *config.rewards.held_out, *config.rewards.judges)}
    known = REWARDS | VIDEO_METRICS
    rewards = sum(known[name].gib for name in names if name in known)
    return shaped.numbers() * dtype.itemsize / GIB + rewards
