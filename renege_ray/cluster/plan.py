"""What a run will cost, counted before it starts."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from renege_ray.cluster.compilation import describe_compiling
from renege_ray.cluster.cost import Cost, evaluation_cost, gradient_cost, tuning_cost, validation_images
from renege_ray.config.gpus import Gpu
from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError
from renege_ray.evaluation.inputs import scores_of
from renege_ray.models.toy import EMBEDDED_MODELS
from renege_ray.output.progress import duration

if TYPE_CHECKING:
    from renege_ray.sweeps.space import SearchSpace


def describe_plan(
    config: RunConfig, notes: Sequence[str], problems: Sequence[UserError] = (), gpu: Gpu | None = None
) -> str:
    """The plan as text: what would be done, with what, at which cost, on which GPU, and what is in its way."""
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
        *_end(config, total, problems, gpu=gpu),
    ]
    return "\n".join(lines)


def not_ready(problems: Sequence[UserError]) -> str:
    """What is in the way of a run, a line each."""
    return "\n".join(f"not ready: {problem}" for problem in problems)


def describe_sweep_plan(
    config: RunConfig,
    space: "SearchSpace",
    trial: RunConfig,
    concurrent: int | None,
    notes: Sequence[str],
    gpu: Gpu | None = None,
) -> str:
    """The plan of a sweep as text.

    Args:
        config: of the sweep.
        space: what it searches.
        trial: the configuration of the first trial, the preset's own.
        concurrent: trials at the same time; None where only the cluster knows.
        notes: what there is to say of what was read.
        gpu: that the hours are wanted on.
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
        *_end(trial, total, gpu=gpu),
    ]
    return "\n".join(line for line in lines if line)


def describe_tuning_plan(config: RunConfig, prompts: int, notes: Sequence[str], gpu: Gpu | None = None) -> str:
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
        *_end(config, total, gpu=gpu),
    ]
    return "\n".join(lines)


def describe_evaluation_plan(
    config: RunConfig, prompts: int, images: int, notes: Sequence[str], gpu: Gpu | None = None
) -> str:
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
        *_end(config, total, judged=scores_of(config).all, gpu=gpu),
    ]
    return "\n".join(lines)


def _model_and_rewards(config: RunConfig) -> str:
    held_out = ", ".join(config.rewards.held_out) or "none"
    return f"model {config.model.id}, rewards {config.rewards.train}, held out {held_out}"


def _end(
    config: RunConfig,
    total: Cost,
    problems: Sequence[UserError] = (),
    *,
    judged: Sequence[str] | None = None,
    gpu: Gpu | None = None,
) -> list[str]:
    """`judged`: by which rewards and judges images are looked at; None: by all that the section rewards names."""
    rewards = config.rewards
    judged = (*rewards.train, *rewards.held_out, *rewards.judges) if judged is None else judged
    found = [not_ready(problems)] if problems else _estimate(config, total, judged, gpu)
    compiling = describe_compiling(config.model, total, config.cluster.worker_range[1])
    return [compiling, *found, "dry run: nothing was started"]


def _counts(cost: Cost) -> str:
    return (
        f"{cost.denoiser_forward:,} denoiser forward and {cost.denoiser_backward:,} backward passes, "
        f"{cost.decode_forward:,} decodes, {cost.rewarded_images:,} rewarded images"
    )


def _estimate(config: RunConfig, total: Cost, judged: Sequence[str], gpu: Gpu | None) -> list[str]:
    """Seconds for an embedded model, which takes a moment to try; floating-point operations for any other, and for all
    where a GPU is named.
    """
    lines = []
    if config.model.id in EMBEDDED_MODELS:
        seconds = _toy_pass_seconds(config) * (total.denoiser_forward + 1.1 * total.denoiser_backward)
        lines.append(f"about {duration(seconds)} (h:mm:ss or m:ss) of denoiser passes on one worker of this machine")
        if gpu is None:
            return lines
    from renege_ray.cluster.flops import ShapedModel, describe_hours, flops_of  # imports diffusers
    from renege_ray.cluster.tiers import describe_tiers

    shaped = ShapedModel.read(config)
    parts = flops_of(shaped, total, config.rewards.train, judged)
    described = f"{type(shaped.model).__name__}, negative of {shaped.model.embedding_layout.describe()}"
    described += f", {shaped.model.remark}" if shaped.model.remark else ""
    shares = ", ".join(f"{name} {_peta(value)}" for name, value in vars(parts).items())
    lines.append(f"{described}; about {_peta(parts.total)} PFLOP: {shares}")
    if gpu is not None:
        lines.append(describe_hours(parts, gpu, config.model.dtype))
    if total.denoiser_backward and config.model.id not in EMBEDDED_MODELS:
        lines.append(describe_tiers(config, shaped))
    return lines


def _peta(flops: float) -> str:
    """Three digits, without an exponent."""
    value = flops / 1e15
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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
