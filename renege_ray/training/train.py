"""Use case: learn one negative embedding for all prompts (the paper's global embedding), data-parallel.

Each step draws a global batch, takes the gradient of its mean reward with respect to the negative embedding
n, and makes one update. Every rank holds the same n and makes the same update; only the sums of the gradients
travel. This module knows neither Ray nor MLflow: its caller gives it a `Workers` and is told of its progress.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from renege_ray.config.fingerprint import fingerprint
from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError
from renege_ray.method.ascent import Ascent, AscentReport, AscentSettings
from renege_ray.method.embedding import as_stored
from renege_ray.models.base import TextToImage
from renege_ray.output.progress import Counter
from renege_ray.rewards.base import prepare_texts
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Evaluation, Pair, evaluate, make_pairs
from renege_ray.sampling.negative import NULL, Negative
from renege_ray.sampling.run_rewards import REWARD, Rewards
from renege_ray.sampling.workers import Workers
from renege_ray.training.early_stop import ValidationPoint, should_stop
from renege_ray.training.gradient import GlobalGradient, GradientOfBatch, drawn_prompts
from renege_ray.training.state import BestEmbedding, TrainingState

INVALID_IN_A_ROW = 10


class TrainingError(RuntimeError):
    """Training cannot go on, for a reason that more attempts would not change."""


@dataclass(frozen=True)
class Prompts:
    """The prompts to train on, to validate on, and to report on at the end."""

    train: Sequence[str]
    validation: Sequence[str]
    held_out: Sequence[str]


@dataclass(frozen=True)
class Progress:
    """What happened at the end of `step` updates, told on every rank alike."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    """Named numbers."""
    evaluation: Evaluation | None = None
    """Null, handwritten and global on the validation pairs, where it was measured."""
    state: TrainingState | None = None
    """A checkpoint, where one is due; it has to be kept before the call returns."""
    message: str = ""


@dataclass(frozen=True)
class Result:
    """How a run ended. `status` is "finished", "stopped early" or "interrupted" (then there is no `test`, nor is there
    where none was asked for).
    """

    status: str
    state: TrainingState

    @property
    def test(self) -> Evaluation | None:
        """Null, handwritten and global (the best one) on held-out pairs with every scorer."""
        return self.state.test

    @property
    def last(self) -> Tensor:
        """The embedding of the last update, (1, L, D) rounded to the storage type."""
        return as_stored(self.state.last)

    @property
    def best(self) -> Tensor:
        """The best embedding by validation, (1, L, D) rounded to the storage type."""
        return self.state.best.prompt_embeds


def train_global(
    config: RunConfig,
    model: TextToImage,
    rewards: Rewards,
    prompts: Prompts,
    workers: Workers | None = None,
    *,
    initial: Negative = NULL,
    resume: TrainingState | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    test: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train as configured, from the start or from a checkpoint, and evaluate the result on held-out pairs.

    Args:
        config: the run; every rank is given the same one.
        model: frozen.
        initial: what `config.optim.init` stands for; "handwritten" is the best candidate, known to the run alone.
        resume: a checkpoint of a run with the same fingerprint.
        report: told of every step, on every rank.
        asked_to_stop: polled before every micro-batch; when any rank is asked to, all drop the step that they are at
            and stop, with a checkpoint of the one before.
        test: evaluate on the held-out pairs in the end; a trial of a sweep, chosen by validation, has no use for it.
        say: told in a line now and then how far evaluations are, on every rank of its own share.

    Raises:
        TrainingError: ten samples in a row without a finite reward and gradient; the message names the step.
        UserError: the checkpoint belongs to another configuration.
    """
    run = _Run(config, model, rewards, prompts, workers or Workers(), report, say)
    try:
        run.read_texts(initial, test)
        run.begin(resume, initial)
        status = run.ascend(asked_to_stop)
        return Result(status, run.state(run.test() if test and status != "interrupted" else None))
    finally:
        run.encoded.close()


class _Run:
    """The moving parts of one run: what a checkpoint holds, and what is built anew from the configuration."""

    def __init__(
        self,
        config: RunConfig,
        model: TextToImage,
        rewards: Rewards,
        prompts: Prompts,
        workers: Workers,
        report: Callable[[Progress], None],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.model, self.rewards, self.prompts = config, model, rewards, prompts
        self.workers, self.report, self.say = workers, report, say
        self.scorers = rewards.scorers()
        self.encoded = EncodedPrompts(model)
        self.pairs = validation_pairs(config, prompts)
        self.step = 0
        self.kept = 0  # the step of the newest checkpoint
        self.invalid_in_a_row = 0
        self.invalid_samples = 0
        self.history: list[ValidationPoint] = []
        self.earlier_seconds = 0.0
        self.started = time.monotonic()

    def read_texts(self, initial: Negative, test: bool) -> None:
        """Encode all that will be asked for, once on each machine: then the text encoders are not needed any more. Let
        the rewards' text towers read what this rank draws.
        """
        config = self.config
        judged = [pair.prompt for pair in (*self.pairs, *(self._test_pairs() if test else ()))]
        negatives = ["", initial.text or "", *config.prompts.handwritten]
        drawn = drawn_prompts(config, self.prompts.train, Workers())
        self.encoded.share([*drawn, *judged], self.say, negatives=negatives)
        if self.model.device.type != "cpu":  # there the towers have nowhere to go, and read a prompt when it comes
            mine = drawn_prompts(config, self.prompts.train, self.workers)
            prepare_texts(self.rewards.train.rewards, mine, self.say)
        self.workers.meet()

    def begin(self, resume: TrainingState | None, initial: Negative) -> None:
        """Measure the baselines and start as configured, or take everything from a checkpoint."""
        if resume is not None:
            self._restore(resume)
            return
        self._measure_baselines()
        if self.config.optim.init == "handwritten":
            initial = Negative(self.handwritten)
        self.ascent = Ascent(initial.starting_point(self.model, self.encoded), ascent_settings(self.config))
        self._build_gradient()
        metrics, evaluation = self._validate()
        self.report(Progress(0, metrics, evaluation, self.state(), self._opening_message()))

    def ascend(self, asked_to_stop: Callable[[], bool]) -> str:
        """Update until the configured number of steps, the early stop or a request to stop; returns the
        status.
        """
        config = self.config
        while self.step < config.optim.steps:
            if should_stop(self.history, config.validation.patience):
                return "stopped early"
            step_started = time.monotonic()
            gradient = self.gradient_of_batch(self.step, self.ascent.embedding, asked_to_stop)
            if gradient.stop:
                if self.kept != self.step:
                    self.report(Progress(self.step, {}, None, self.state()))
                return "interrupted"
            self._count_invalid(gradient)
            update = self.ascent.update(gradient.gradient) if gradient.valid.any() else None
            self.step += 1
            metrics = self._step_metrics(gradient, update, time.monotonic() - step_started)
            evaluation, message = None, ""
            last = self.step == config.optim.steps
            if last or self.step % config.validation.every == 0:
                figures, evaluation = self._validate()
                metrics |= figures
                if should_stop(self.history, config.validation.patience):
                    last, message = True, self._early_stop_message()
            due = last or self.step % config.checkpoint.every == 0
            self.report(Progress(self.step, metrics, evaluation, self.state() if due else None, message))
            self.kept = self.step if due else self.kept
        return "stopped early" if should_stop(self.history, config.validation.patience) else "finished"

    def test(self) -> Evaluation:
        """The best embedding against the baselines, on prompts that nothing was chosen on."""
        negatives = {
            "null": self.encoded.null(),
            "handwritten": self.encoded.negatives([self.handwritten]),
            "global": self.best.prompt_embeds,
        }
        return self._evaluate(negatives, self._test_pairs(), "final test")

    def _test_pairs(self) -> Sequence[Pair]:
        return make_pairs(self.prompts.held_out, self.config.test.num_pairs, self.config.seed)

    def state(self, test: Evaluation | None = None) -> TrainingState:
        """The checkpoint of this moment."""
        return TrainingState(
            step=self.step,
            ascent=self.ascent.state(),
            best=self.best,
            history=tuple(self.history),
            handwritten=self.handwritten,
            candidate_rewards=self.candidate_rewards,
            baselines=self.baselines,
            fingerprint=fingerprint(self.config),
            invalid_in_a_row=self.invalid_in_a_row,
            invalid_samples=self.invalid_samples,
            micro_batch_size=self.gradient_of_batch.micro_batch_size,
            threads=torch.get_num_threads(),
            world_size=self.workers.world_size,
            seconds=self._seconds(),
            test=test,
        )

    def _restore(self, state: TrainingState) -> None:
        if state.fingerprint != fingerprint(self.config):
            raise UserError(
                f"--resume: the checkpoint at step {state.step} belongs to another configuration "
                f"(fingerprint {state.fingerprint}, this one has {fingerprint(self.config)}); resume with "
                "the run's own config.yaml"
            )
        self.step = self.kept = state.step
        self.best, self.baselines = state.best, state.baselines
        self.history = list(state.history)
        self.handwritten, self.candidate_rewards = state.handwritten, state.candidate_rewards
        self.invalid_in_a_row, self.invalid_samples = state.invalid_in_a_row, state.invalid_samples
        self.earlier_seconds = state.seconds
        self.ascent = Ascent(state.ascent["initial"], ascent_settings(self.config))
        self.ascent.restore(state.ascent)
        # A size found on other hardware, or for another number of workers, says nothing here.
        same = state.world_size == self.workers.world_size
        self._build_gradient(state.micro_batch_size if same else 0)

    def _build_gradient(self, micro_batch_size: int = 0) -> None:
        self.gradient_of_batch = GradientOfBatch(
            self.config,
            self.model,
            self.rewards.train,
            self.prompts.train,
            self.workers,
            self.encoded,
            micro_batch_size,
        )

    def _measure_baselines(self) -> None:
        """Null and all handwritten candidates on the validation pairs; the best one is "handwritten"."""
        candidates = {f"candidate {i}": text for i, text in enumerate(self.config.prompts.handwritten)}
        negatives = {key: self.encoded.negatives([text]) for key, text in candidates.items()}
        measured = self._evaluate({"null": self.encoded.null(), **negatives}, self.pairs, "baselines")
        rewards = {key: _finite_or_lowest(measured.mean(key, REWARD)) for key in candidates}
        chosen = max(rewards, key=lambda key: rewards[key])
        self.handwritten = candidates[chosen]
        self.candidate_rewards = {text: rewards[key] for key, text in candidates.items()}
        self.baselines = measured.renamed({"null": "null", "handwritten": chosen})

    def _validate(self) -> tuple[dict[str, float], Evaluation]:
        """Measure the embedding as it would be stored; note the best, and the point for the early stop."""
        candidate = as_stored(self.ascent.averaged)
        evaluation = self.baselines.joined(self._evaluate({"global": candidate}, self.pairs, "validation"))
        train_reward = evaluation.mean("global", REWARD)
        if self.step == 0 or train_reward > self.best.train_reward:
            self.best = BestEmbedding(candidate, self.step, _finite_or_lowest(train_reward))
        held_out = [evaluation.mean("global", reward.name) for reward in self.rewards.held_out]
        self.history.append(
            ValidationPoint(self.step, train_reward, sum(held_out) / len(held_out) if held_out else math.nan)
        )
        return evaluation.metrics(), evaluation

    def _evaluate(self, negatives: dict[str, Tensor], pairs: Sequence[Pair], what: str) -> Evaluation:
        validation = self.config.validation
        images = len(negatives) * len(self.workers.share(len(pairs)))
        return evaluate(
            self.model,
            negatives,
            pairs,
            self.scorers,
            self.config.sampling,
            self.workers,
            batch_size=validation.batch_size,
            keep_images=validation.num_images,
            encoded=self.encoded,
            made=Counter(images, f"{what}: image", self.say).add,
        )

    def _count_invalid(self, gradient: GlobalGradient) -> None:
        """Go through the samples in their order, the same on every rank and for any number of workers."""
        for valid in gradient.valid.tolist():
            self.invalid_in_a_row = 0 if valid else self.invalid_in_a_row + 1
            self.invalid_samples += not valid
            if self.invalid_in_a_row == INVALID_IN_A_ROW:
                raise TrainingError(
                    f"step {self.step}: {INVALID_IN_A_ROW} samples in a row had no finite reward or gradient "
                    f"({self.invalid_samples} in all); lower optim.lr or sampling.guidance_scale, or use "
                    "model.dtype float32"
                )

    def _step_metrics(self, gradient: GlobalGradient, update: AscentReport | None, seconds: float) -> dict[str, float]:
        metrics = {f"train/{name}": value for name, value in gradient.means().items()} if update else {}
        metrics |= {
            "train/invalid_samples": float(self.invalid_samples),
            "perf/step_seconds": seconds,
            "perf/samples_per_second": self.config.optim.batch_size / seconds,
            "perf/seconds": self._seconds(),
        }
        if update is not None:
            metrics |= {"train/grad_norm": update.grad_norm, "train/drift": update.drift, "train/lr": update.lr}
        return metrics

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def _opening_message(self) -> str:
        ranked = sorted(self.candidate_rewards.items(), key=lambda item: -item[1])
        scores = ", ".join(f"{score:.4f} {text!r}" for text, score in ranked)
        opening = f"handwritten negatives by validation reward (the first is used): {scores}"
        return f"{opening}\n{self._patience_message()}"

    def _patience_message(self) -> str:
        patience = self.config.validation.patience
        if not patience:
            return "early stop: off (validation.patience is 0)"
        if not self.rewards.held_out:
            return "early stop: off (no held-out reward is configured)"
        return (
            f"early stop: on, after {patience} validations in a row with the held-out reward below its best "
            "while the training reward is above what it was there"
        )

    def _early_stop_message(self) -> str:
        return (
            f"early stop at step {self.step}: the held-out reward has been below its best for "
            f"{self.config.validation.patience} validations while the training reward rose; the best "
            f"embedding by validation is that of step {self.best.step}"
        )


def validation_pairs(config: RunConfig, prompts: Prompts) -> tuple[Pair, ...]:
    """The pairs of prompt and seed that every validation of a training is made on."""
    validation = config.validation
    count = validation.num_prompts * validation.seeds_per_prompt
    return make_pairs(prompts.validation, count, config.seed, num_prompts=validation.num_prompts)


def ascent_settings(config: RunConfig) -> AscentSettings:
    """The update's constants from the configuration."""
    optim = config.optim
    return AscentSettings(
        lr=optim.lr,
        steps=optim.steps,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        max_grad_norm=optim.max_grad_norm,
        ema_decay=optim.ema_decay,
        drift_penalty=optim.drift_penalty,
    )


def _finite_or_lowest(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
