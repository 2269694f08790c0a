"""Which settings have an effect on the result of a job, and the fingerprint of those that have."""

import hashlib
import json

from renege_ray.config import RunConfig, to_mapping

# Where a run writes, who watches it and how often it saves change nothing about what it learns.
_WITHOUT_EFFECT = ("output_dir", "experiment", "tracking_uri", "memory", "checkpoint", "cluster")
# What a job does not look at.
FOREIGN = {
    "train_global": ("tuning", "cluster.gpus_per_worker"),
    "tune_prompts": (
        "optim", "validation", "test", "checkpoint", "prompts.train", "prompts.validation", "prompts.held_out",
        "cluster.max_failures",
    ),
}  # fmt: skip
# Which prompts are tuned, and how many at once, changes nothing about what any of them becomes.
_WITHOUT_EFFECT_ON_A_PROMPT = tuple(
    f"tuning.{name}" for name in ("prompts", "num_prompts", "slots", "micro_batch_size", "max_failed")
)


def is_foreign(name: str, job: str) -> bool:
    """Whether a job has no use for the field or section of this dotted name."""
    return _is_within(name, FOREIGN.get(job, FOREIGN["train_global"]))


def has_effect(name: str, job: str = "train_global") -> bool:
    """Whether the field or section of this dotted name has an effect on the result of a job."""
    if job == "tune_prompts" and _is_within(name, _WITHOUT_EFFECT_ON_A_PROMPT):
        return False
    return not _is_within(name, _WITHOUT_EFFECT) and not is_foreign(name, job)


def _is_within(name: str, names: tuple[str, ...]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in names)


def fingerprint(config: RunConfig, job: str = "train_global") -> str:
    """16 hex digits, the same for two configurations exactly if these have to give the same result.

    Files (prompts, init, a local model) count by their names, not by what is in them: that is for
    `renege_ray.inputs` to watch.
    """
    relevant = {
        name: {leaf: item for leaf, item in value.items() if has_effect(f"{name}.{leaf}", job)}
        if isinstance(value, dict)
        else value
        for name, value in to_mapping(config).items()
        if has_effect(name, job)
    }
    text = json.dumps(relevant, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
