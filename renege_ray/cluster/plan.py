"""What a run will cost, counted before it starts."""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch

from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError
from renege_ray.models.toy import EMBEDDED_MODELS
from renege_ray.output.progress import duration
from renege_ray.training.gradient import gradient_step_indices

if TYPE_CHECKING:
    from renege_ray.models.frozen_pipeline import FrozenPipeline
    from renege_ray.sweeps.space import SearchSpace


@dataclass(frozen=True)
class Cost:
    """How often each part of the models is run, per image (a batch of 8 counts 8 times)."""

    denoiser_forward: int
    denoiser_backward: int
    decode_forward: int
    decode_backward: int
    rewarded_images: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def gradient_cost(config: RunConfig) -> Cost:
    """All updates: the steps of the rollouts are drawn in advance, so the count is exact."""
    optim = config.optim
    group_size = optim.batch_size // optim.timestep_groups
    rollouts = sum(
        group_size * gradient_step_indices(config, step, group)[-1]
        for step in range(optim.steps)
        for group in range(optim.timestep_groups)
    )
    gradients = optim.steps * optim.batch_size * optim.gradients_per_rollout
    return Cost(2 * rollouts + 2 * gradients, *[gradients] * 4)


def evaluation_cost(config: RunConfig, images: int) -> Cost:
    """Full generations of so many images."""
    return Cost(2 * images * config.sampling.num_inference_steps, 0, images, 0, images)


def validation_images(config: RunConfig) -> int:
    """Images of all validations, the baselines and the handwritten candidates at the start included."""
    every, steps = config.validation.every, config.optim.steps
    rounds = 1 + steps // every + (1 if steps % every else 0)
    pairs = config.validation.num_prompts * config.validation.seeds_per_prompt
    return pairs * (rounds + 1 + len(config.prompts.handwritten))


def describe_plan(config: RunConfig, notes: Sequence[str], problems: Sequence[UserError] = ()) -> str:
    """The plan as text: what would be done, with what, at which cost, and what is in its way."""
    parts = {
        "training": gradient_cost(config),
        "validation": evaluation_cost(config, validation_images(config)),
        "final test": evaluation_cost(config, 3 * config.test.num_pairs),
    }
    total = sum(parts.values(), Cost(0, 0, 0, 0, 0))
    lines = [
        _model_and_rewards(config),
        f"{config.optim.steps} updates of {config.optim.batch_size} samples on {config.cluster.num_workers} worker(s)",
        f"results in {config.output_dir}",
        *notes,
        *(f"{name}: {_counts(cost)}" for name, cost in parts.items()),
        f"in all: {_counts(total)}",
        *_end(config, total, problems),
    ]
    return "\n".join(lines)


def not_ready(problems: Sequence[UserError]) -> str:
    """What is in the way of a run, a line each."""
    return "\n".join(f"not ready: {problem}" for problem in problems)


def describe_sweep_plan(
    config: RunConfig, space: "SearchSpace", trial: RunConfig, concurrent: int | None, notes: Sequence[str]
) -> str:
    """The plan of a sweep as text.

    Args:
        config: of the sweep.
        space: what it searches.
        trial: the configuration of the first trial, the preset's own.
        concurrent: trials at the same time; None where only the cluster knows.
    """
    sweep = config.sweep
    if space.needs_training:
        one = gradient_cost(trial) + evaluation_cost(trial, validation_images(trial))
    else:  # a single evaluation
        one = evaluation_cost(trial, trial.validation.num_prompts * trial.validation.seeds_per_prompt)
    confirming = 2 * sweep.confirm_seeds
    test = evaluation_cost(trial, trial.test.num_pairs)
    total = sum([one] * (space.trials + confirming) + [test] * confirming, Cost(0, 0, 0, 0, 0))
    goals = ", ".join(f"{objective.direction} {objective.metric}" for objective in space.objectives)
    how = {
        "asha": f"ASHA from update {space.scheduler.grace} on, 1 of {space.scheduler.reduction_factor} goes on",
        "median": f"the median rule from update {space.scheduler.grace} on",
        "none": "no early stop by comparison",
    }[space.scheduler.name]
    lines = [
        f"space {space.name} ({space.source}), {goals}",
        *(f"  {name}: {words}" for name, words in space.parameters.items()),
        f"{space.trials} trials by {space.sampler}, {how}; validations every {trial.validation.every} updates",
        f"trials of {trial.optim.steps} updates of {trial.optim.batch_size} samples, the preset's own settings first; "
        f"{sweep.workers_per_trial} worker(s) each, "
        + ("as many at a time as the cluster holds" if concurrent is None else f"{concurrent} at a time"),
        f"then {confirming} trainings to confirm, on {sweep.confirm_seeds} fresh seeds" if confirming else "",
        f"results in {config.output_dir}",
        *notes,
        f"one trial: {_counts(one)}",
        f"in all, if no trial is stopped: {_counts(total)}",
        *_end(trial, total),
    ]
    return "\n".join(line for line in lines if line)


def tuning_cost(config: RunConfig, prompts: int) -> Cost:
    """All prompts, if none stops early: every candidate's generation and gradient, and what else is compared."""
    tuning = config.tuning
    seeds = tuning.tune_seeds + tuning.eval_seeds
    generated = (tuning.steps + 1) * tuning.tune_seeds + 2 * seeds + 2 * tuning.eval_seeds
    gradients = prompts * tuning.steps * tuning.tune_seeds * tuning.gradients_per_rollout
    return evaluation_cost(config, prompts * generated) + Cost(2 * gradients, *[gradients] * 4)


def describe_tuning_plan(config: RunConfig, prompts: int, notes: Sequence[str]) -> str:
    """The plan of per-prompt tuning as text."""
    tuning = config.tuning
    total = tuning_cost(config, prompts)
    lines = [
        _model_and_rewards(config),
        f"{prompts} prompts from {tuning.prompts}, starting from {tuning.init}; at most {tuning.steps} updates each, "
        f"on {tuning.tune_seeds} images, compared on {tuning.eval_seeds} more",
        f"{config.cluster.num_workers} worker(s) of {tuning.slots} slots; results in {config.output_dir}",
        *notes,
        f"at most: {_counts(total)}",
        *_end(config, total),
    ]
    return "\n".join(lines)


def describe_evaluation_plan(config: RunConfig, prompts: int, images: int, notes: Sequence[str]) -> str:
    """The plan of an evaluation as text. Images of other models are counted as if they were of the configuration's."""
    evaluation = config.evaluation
    total = evaluation_cost(config, images)
    kept = "not kept" if evaluation.keep_images == "none" else f"kept as {evaluation.keep_images}"
    lines = [
        f"model {config.model.id}, {len(evaluation.methods)} methods on {prompts} prompts from {evaluation.prompts} "
        f"with {evaluation.seeds_per_prompt} seed(s) each: {images} images, {kept}",
        *notes,
        f"{config.cluster.num_workers} worker(s); results in {config.output_dir}",
        _counts(total),
        *_end(config, total),
    ]
    return "\n".join(lines)


def _model_and_rewards(config: RunConfig) -> str:
    held_out = ", ".join(config.rewards.held_out) or "none"
    return f"model {config.model.id}, rewards {config.rewards.train}, held out {held_out}"


def _end(config: RunConfig, total: Cost, problems: Sequence[UserError] = ()) -> list[str]:
    return [not_ready(problems) or _estimate(config, total), "dry run: nothing was started"]


def _counts(cost: Cost) -> str:
    return (
        f"{cost.denoiser_forward:,} denoiser forward and {cost.denoiser_backward:,} backward passes, "
        f"{cost.decode_forward:,} decodes, {cost.rewarded_images:,} rewarded images"
    )


def _estimate(config: RunConfig, total: Cost) -> str:
    """Seconds for an embedded model, which takes a moment to try; floating-point operations for any other."""
    if config.model.id in EMBEDDED_MODELS:
        seconds = _toy_pass_seconds(config) * (total.denoiser_forward + 1.1 * total.denoiser_backward)
        return f"about {duration(seconds)} (h:mm:ss or m:ss) of denoiser passes on one worker of this machine"
    model = _model_without_weights(config)
    flops = _denoiser_flops(model) * (total.denoiser_forward + 1.1 * total.denoiser_backward)
    layout = model.embedding_layout.describe()
    return f"{type(model).__name__}, negative of {layout}; about {flops / 1e15:.3g} PFLOP of denoiser passes"


def _toy_pass_seconds(config: RunConfig) -> float:
    """Seconds of a denoiser forward pass per image, in a batch as large as a rollout's."""
    from renege_ray.models.load import load_model

    model = load_model(config.model)
    size = 2 * max(1, config.optim.batch_size // config.optim.timestep_groups)
    latents = torch.zeros(size, *model.latent_shape, device=model.device)
    embeds = torch.zeros(size, *model.embedding_shape, device=model.device)
    timestep = torch.tensor(500)
    with torch.no_grad():
        model.denoise(latents, timestep, embeds)
        started, rounds = time.perf_counter(), 5
        for _ in range(rounds):
            model.denoise(latents, timestep, embeds)
    return (time.perf_counter() - started) / rounds / size


def _model_without_weights(config: RunConfig) -> "FrozenPipeline":
    """The model in a folder, or among the Hub's files, by its configuration files."""
    from renege_ray.models.families.registry import check_family
    from renege_ray.models.loading.hub import find_folder
    from renege_ray.models.loading.user_errors import user_errors

    folder = find_folder(config.model)
    family = check_family(folder, config.model.id)
    with user_errors(f"model {config.model.id!r}: its configuration", "export or download it again"):
        return family.without_weights(folder, **family.options(config.model))


def _denoiser_flops(model: "FrozenPipeline") -> float:
    """Floating-point operations of the denoiser's forward pass on one image, counted without weights."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        latents, embeds = torch.empty(1, *model.latent_shape), torch.empty(1, *model.embedding_shape)
        model.denoise(latents, torch.empty((), dtype=torch.int64), embeds)
    return float(counter.get_total_flops())
