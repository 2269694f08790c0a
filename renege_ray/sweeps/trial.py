"""What a trial of a sweep is: a global training that reports, at each validation, the worth of what it would leave.

This module knows neither Ray nor Optuna nor MLflow; `cluster.sweep` runs trials and searches.
"""

import io
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from renege_ray.config.run import RunConfig
from renege_ray.models.base import TextToImage
from renege_ray.output.pictures import image_grid
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Evaluation, evaluate, make_pairs
from renege_ray.sampling.run_rewards import REWARD, Rewards
from renege_ray.sampling.workers import Workers
from renege_ray.training.state import TrainingState
from renege_ray.training.train import Progress, Prompts, Result, validation_pairs


class TrialError(RuntimeError):
    """A trial has no value, for a reason that more attempts would not change."""


@dataclass(frozen=True)
class TrialReport:
    """What a trial tells at a validation, and once more in the end."""

    step: int
    """Updates so far."""
    values: tuple[float, ...]
    """The objectives, of what the trial would leave now: its best by training reward on the validation pairs."""
    curves: tuple[tuple[int, dict[str, float]], ...] = ()
    """(step, {name: number}) of all steps since the last report."""
    picture: bytes | None = None
    """A PNG of the validation images."""
    status: str = ""
    """Nothing while it goes on; in the end "finished", "stopped early" (by the held-out rewards) or "failed"."""
    reason: str = ""
    """Why it failed."""
    seconds: float = 0.0
    """Of computing in this process so far."""
    load_seconds: float = 0.0
    """Of loading models before it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures of the whole trial."""
    facts: dict[str, Any] = field(default_factory=dict)
    """`ModelFacts.plain()`, in the end."""


@dataclass(frozen=True)
class TrialMemory:
    """What goes with a checkpoint of a trial: the metrics of its best embedding, and all reports up to this moment.

    A report comes before its checkpoint, but the one who is told may have been killed meanwhile, or some reports later
    where they are handed on by others. So a trial that goes on tells all of them again: whoever knows them already
    takes no notice. Only the last one still has its picture.
    """

    best: dict[str, float]
    reports: tuple[TrialReport, ...]


class TrialReporter:
    """Turns the progress of a training into trial reports and checkpoints."""

    def __init__(
        self,
        config: RunConfig,
        objectives: Sequence[str],
        tell: Callable[[TrialReport], None],
        save: Callable[[TrainingState, TrialMemory], None],
        load_seconds: float = 0.0,
    ) -> None:
        self._config, self._objectives = config, objectives
        self._tell, self._save, self._load_seconds = tell, save, load_seconds
        self.best: dict[str, float] = {}
        self._curves: list[tuple[int, dict[str, float]]] = []
        self._reports: list[TrialReport] = []
        self._last: TrialReport | None = None
        self._started = time.monotonic()

    def go_on(self, memory: TrialMemory) -> None:
        """Before the training goes on from a checkpoint."""
        self.best = dict(memory.best)
        for report in memory.reports:
            self._send(report)

    def report(self, progress: Progress) -> None:
        """What `train_global` is given to tell its progress to."""
        self._curves.append((progress.step, progress.metrics))
        evaluation = progress.evaluation
        if evaluation is None:  # a state without one comes with a request to stop: the last validation's will do
            return
        name = f"eval/global/{REWARD}/mean"
        metrics = evaluation.metrics()
        if not self.best or metrics[name] > self.best[name]:
            self.best = metrics
        picture = picture_of(evaluation, self._config.validation.num_images, f"step {progress.step}")
        report = TrialReport(progress.step, self.values(progress.step), self._taken(), picture)
        self._send(report)
        if progress.state is not None:
            self._save(progress.state, TrialMemory(self.best, (*self._reports[:-1], report)))

    def values(self, step: int) -> tuple[float, ...]:
        """The objectives so far. Raises TrialError where one is not a finite number."""
        return _finite(self.best, self._objectives, step)

    def end(self, result: Result, metrics: Mapping[str, float], facts: dict[str, Any]) -> None:
        """Tell of a trial that is over."""
        step = result.state.step
        figures = {**self.best, "train/best_step": float(result.state.best.step), **metrics}
        last = self._last or TrialReport(step, self.values(step), self._taken())
        self._tell_now(replace(last, status=result.status, metrics=figures, facts=facts))

    def _send(self, report: TrialReport) -> None:
        """Tell it; the one after the last update waits for `end`, which tells it together with the status."""
        self._reports.append(replace(report, picture=None))
        if report.step < self._config.optim.steps:
            self._tell_now(report)
        else:
            self._last = report

    def _tell_now(self, report: TrialReport) -> None:
        seconds = time.monotonic() - self._started
        self._tell(replace(report, seconds=seconds, load_seconds=self._load_seconds))

    def _taken(self) -> tuple[tuple[int, dict[str, float]], ...]:
        curves, self._curves = tuple(self._curves), []
        return curves


def picture_of(evaluation: Evaluation, columns: int, title: str) -> bytes | None:
    """The images of an evaluation as a PNG; None where it kept none."""
    if not evaluation.images:
        return None
    buffer = io.BytesIO()
    image_grid(evaluation.images, [pair.prompt for pair in evaluation.pairs[:columns]], title).save(buffer, "PNG")
    return buffer.getvalue()


def thrifty(config: RunConfig, base: RunConfig, objectives: Sequence[str]) -> RunConfig:
    """A trial's configuration without what no trial needs.

    Of several handwritten candidates, which training compares at its start, the first stands for all, unless the space
    chooses candidates, an objective compares with the best of them, or training starts from it. Checkpoints come with
    validations. Neither changes the embedding that is learned.
    """
    changes: dict[str, Any] = {"checkpoint": config.checkpoint.model_copy(update={"every": config.validation.every})}
    candidates = config.prompts.handwritten
    chosen = candidates != base.prompts.handwritten or any("handwritten" in name for name in objectives)
    if not chosen and config.optim.init != "handwritten":
        changes["prompts"] = config.prompts.model_copy(update={"handwritten": candidates[:1]})
    return config.model_copy(update=changes)


def methods_of(objectives: Sequence[str]) -> set[str]:
    """The methods that metrics speak of: of null, handwritten and global."""
    words = {word for name in objectives for word in name.replace("win_rate_vs_", "").split("/")}
    return words & {"null", "handwritten", "global"}


def measure(
    config: RunConfig,
    model: TextToImage,
    rewards: Rewards,
    prompts: Prompts,
    workers: Workers,
    methods: Collection[str],
    state: TrainingState | None = None,
    *,
    held_out: bool = False,
) -> Evaluation:
    """Null, the first handwritten negative and global (the best embedding of `state`), as far as they are wanted, on
    the validation pairs of training, or on the held-out pairs of its final test.
    """
    encoded = EncodedPrompts(model)
    with model.encoding():
        negatives = {"null": encoded.null(), "handwritten": encoded.negatives([config.prompts.handwritten[0]])}
        if state is not None:
            negatives |= {"handwritten": encoded.negatives([state.handwritten]), "global": state.best.prompt_embeds}
    return evaluate(
        model,
        {method: negative for method, negative in negatives.items() if method in methods},
        make_pairs(prompts.held_out, config.test.num_pairs, config.seed)
        if held_out
        else validation_pairs(config, prompts),
        rewards.scorers(),
        config.sampling,
        workers,
        batch_size=config.validation.batch_size,
        keep_images=config.validation.num_images,
        encoded=encoded,
    )


def as_test(evaluation: Evaluation) -> dict[str, float]:
    """Figures on held-out pairs, `test/<method>/<score>/mean`, apart from those of validation."""
    return {test_name(name): value for name, value in evaluation.metrics().items()}


def test_name(metric: str) -> str:
    """What a metric of validation is called on held-out pairs."""
    return f"test/{metric.removeprefix('eval/')}"


def measured_only(
    config: RunConfig,
    objectives: Sequence[str],
    evaluation: Evaluation,
    seconds: float,
    load_seconds: float,
    *,
    held_out: bool,
) -> TrialReport:
    """The only report of a trial that learns nothing. `held_out`: where it was measured, see `measure`.

    Raises:
        TrialError: an objective is not a finite number.
    """
    figures = evaluation.metrics()
    return TrialReport(
        0,
        _finite(figures, objectives, 0),
        ((0, figures),),
        picture_of(evaluation, config.validation.num_images, ", ".join(config.prompts.handwritten)),
        "finished",
        seconds=seconds,
        load_seconds=load_seconds,
        metrics=as_test(evaluation) if held_out else figures,
    )


def _finite(figures: Mapping[str, float], objectives: Sequence[str], step: int) -> tuple[float, ...]:
    values = tuple(figures[name] for name in objectives)
    for name, value in zip(objectives, values, strict=True):
        if not math.isfinite(value):
            raise TrialError(f"step {step}: {name} is {value}")
    return values
