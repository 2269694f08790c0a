"""Which settings have an effect on the result of a job, and the fingerprint of those that have."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from renege_ray.config.paths import same_place
from renege_ray.config.run import RunConfig, to_mapping

# Where a run writes, who watches it and how often it saves change nothing about what it learns.
_WITHOUT_EFFECT = ("output_dir", "experiment", "tracking_uri", "memory", "checkpoint", "cluster")
# What a job does not look at.
FOREIGN = {
    "train_global": ("tuning", "evaluation", "sweep", "cluster.gpus_per_worker"),
    "tune_prompts": (
        "optim", "validation", "test", "checkpoint", "evaluation", "sweep", "prompts.train", "prompts.validation",
        "prompts.held_out", "cluster.max_failures",
    ),
    "evaluate": (
        "optim", "validation", "test", "checkpoint", "tuning", "sweep", "sampling.gradient_steps",
        "cluster.max_failures",
    ),
    "sweep": ("tuning", "evaluation", "checkpoint", "cluster.num_workers"),
}  # fmt: skip
# What a job can be given otherwise when it goes on, since it changes nothing about any one of its results: which rows
# a table has, how many trials there are, how many at once.
_WITHOUT_EFFECT_ON_ONE = {
    "tune_prompts": tuple(
        f"tuning.{name}" for name in ("prompts", "num_prompts", "slots", "micro_batch_size", "max_failed")
    ),
    "evaluate": (
        "prompts",  # what a method makes of them is in the method's own key
        *(
            f"evaluation.{name}"
            for name in (
                "methods", "prompts", "num_prompts", "seeds_per_prompt", "allow_missing", "refiners", "batch_size",
                "max_failed",
            )
        ),
    ),
    "sweep": tuple(
        f"sweep.{name}" for name in ("trials", "workers_per_trial", "max_concurrent", "budget_hours", "confirm_seeds")
    ),
}  # fmt: skip


def is_foreign(name: str, job: str) -> bool:
    """Whether a job has no use for the field or section of this dotted name."""
    return _is_within(name, FOREIGN.get(job, FOREIGN["train_global"]))


def has_effect(name: str, job: str = "train_global") -> bool:
    """Whether the field or section of this dotted name has an effect on the result of a job."""
    idle = _WITHOUT_EFFECT + _WITHOUT_EFFECT_ON_ONE.get(job, ())
    return not _is_within(name, idle) and not is_foreign(name, job)


def _is_within(name: str, names: tuple[str, ...]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)


def settled_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model` as fingerprints count it: what an auto of `compile` comes to is a matter of the machine, and
    it counts as the false that was the default before.
    """
    return {**model, "compile": model["compile"] is True}


def fingerprint(config: RunConfig, job: str = "train_global", *, selection: bool = False) -> str:
    """16 hex digits, the same for two configurations exactly if these have to give the same result.

    Files (prompts, init, a local model) count by their places, not by what is in them: that is for
    `renege_ray.training.inputs` to watch.

    Args:
        selection: count also which rows a job makes, not only what is in them.
    """

    def counts(name: str) -> bool:
        chosen = selection and _is_within(name, _WITHOUT_EFFECT_ON_ONE.get(job, ())) and not is_foreign(name, job)
        return has_effect(name, job) or chosen

    relevant = {
        name: {leaf: item for leaf, item in value.items() if counts(f"{name}.{leaf}")}
        if isinstance(value, dict)
        else value
        for name, value in to_mapping(config).items()
        if counts(name)
    }
    if "model" in relevant:
        relevant["model"] = settled_model(relevant["model"])
    text = json.dumps(same_place(relevant), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
