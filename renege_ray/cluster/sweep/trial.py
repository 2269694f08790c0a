"""What a trial of a sweep does on each of its workers, and trials of one worker, which train in their own process.

Models are kept from one trial to the next: Ray Tune gives a process that has done with a trial the next one. Trials of
several workers are in `cluster.group_trial`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
import torch

from renege_ray.cluster.compilation import settle
from renege_ray.cluster.cost import training_cost
from renege_ray.cluster.session.device import worker_device
from renege_ray.cluster.session.resources import TrialShape
from renege_ray.cluster.training.checkpoints import CheckpointStore, checkpoint_name
from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError, describe
from renege_ray.models.base import TextToImage
from renege_ray.models.load import load_model
from renege_ray.output.storage import join
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sampling.workers import Workers
from renege_ray.sweeps.trial import (
    TrialError,
    TrialMemory,
    TrialReport,
    TrialReporter,
    as_test,
    measure,
    measured_only,
    methods_of,
)
from renege_ray.training.inputs import Inputs, read_inputs
from renege_ray.training.results import ModelFacts
from renege_ray.training.state import TrainingState
from renege_ray.training.train import TrainingError, train_global

ATTEMPT = "attempt-001"  # a trial that goes on does so in the same place
MEMORY_FILE, PICTURE_FILE = "told.json", "validation.png"
TASK = "task"  # the only setting that Ray Tune knows of a trial; its value is a TrialTask
REPORT, STEP, STATUS = "report", "step", "status"


def objective_key(place: int) -> str:
    """The name of an objective's value among the results that Ray Tune sees; metrics' own names have slashes."""
    return f"objective_{place}"


@dataclass(frozen=True)
class SweepJob:
    """What all trials of a sweep share; it travels to machines that may not see the driver's files."""

    base: RunConfig
    """The configuration that `inputs` were read for."""
    inputs: Inputs
    root: str
    """The folder or URI that trials keep checkpoints below."""
    objectives: tuple[str, ...]
    """Names of metrics."""
    shape: TrialShape

    def inputs_of(self, config: RunConfig) -> Inputs:
        """The prompts and the initial embedding of a trial, read here only where the space varies them."""
        sources = ("train", "validation", "held_out")
        same = all(getattr(config.prompts, split) == getattr(self.base.prompts, split) for split in sources)
        return self.inputs if same and config.optim.init == self.base.optim.init else read_inputs(config)


@dataclass(frozen=True)
class TrialTask:
    """One trial: its folder below the sweep's, its configuration, and whether it is judged on held-out pairs too."""

    folder: str
    config: RunConfig
    test: bool = False


def trial_in_process(given: dict[str, Any], job: SweepJob) -> None:
    """A function for Ray Tune: one worker, this process."""
    with_reasons(lambda: run_trial(job, given[TASK], Workers(), worker_device(job.base.cluster), _tell_tune))


def with_reasons(work: Callable[[], None]) -> None:
    """Do it; an exception becomes the reason of a failed trial, and the process lives on for the next one."""
    try:
        work()
    except torch.AcceleratorError:
        raise  # nothing works in this process any more
    except Exception as error:
        _tell_tune(failure(error))


def failure(reason: str | Exception) -> TrialReport:
    """The last report of a trial that has no value."""
    if isinstance(reason, Exception):
        known = isinstance(reason, TrialError | TrainingError | UserError)
        reason = str(reason) if known else describe(reason)
    return TrialReport(-1, (), status="failed", reason=reason)


def as_result(report: TrialReport) -> dict[str, Any]:
    """A report as Ray Tune takes it: the numbers that a search looks at, and the whole of it."""
    numbers: dict[str, Any] = {objective_key(place): value for place, value in enumerate(report.values)}
    if report.values:
        numbers[STEP] = report.step
    return numbers | {STATUS: report.status, REPORT: report}


def _tell_tune(report: TrialReport) -> None:
    ray.tune.report(as_result(report))


def run_trial(
    job: SweepJob,
    task: TrialTask,
    workers: Workers,
    device: torch.device,
    tell: Callable[[TrialReport], None],
    resume: TrainingState | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train on this rank, from the trial's newest checkpoint if there is one; every rank tells the same reports.

    Raises:
        TrialError, TrainingError, UserError: the trial has no value, for a reason that is the same on every rank.
    """
    checkpoints = TrialCheckpoints(job, task, workers)
    memory: TrialMemory | None = None
    if workers.world_size == 1:
        resume, memory = checkpoints.newest()
    elif resume is not None:
        memory = checkpoints.memory(resume)
    torch.set_num_threads(resume.threads if resume else job.shape.threads)
    started = time.monotonic()
    model, rewards = loaded_models.get(task.config, device)
    load_seconds = time.monotonic() - started
    inputs, methods = job.inputs_of(task.config), methods_of(job.objectives)
    if "global" not in methods:  # nothing has to be learned for what is asked
        evaluation = measure(task.config, model, rewards, inputs.prompts, workers, methods, held_out=task.test)
        seconds = time.monotonic() - started - load_seconds
        arguments = (task.config, job.objectives, evaluation, seconds, load_seconds)
        tell(measured_only(*arguments, held_out=task.test))
        return
    reporter = TrialReporter(task.config, job.objectives, tell, checkpoints.save, load_seconds)
    if memory is not None:
        reporter.go_on(memory)
    result = train_global(
        task.config,
        model,
        rewards,
        inputs.prompts,
        workers,
        initial=inputs.initial,
        resume=resume,
        report=reporter.report,
        asked_to_stop=asked_to_stop,
        test=False,
    )
    if result.status == "interrupted":
        return
    metrics = {"perf/load_seconds": load_seconds}
    if task.test:
        state = result.state
        tested = measure(task.config, model, rewards, inputs.prompts, workers, methods, state, held_out=True)
        metrics |= as_test(tested)
    reporter.end(result, metrics, ModelFacts.of(model, rewards).plain() if workers.rank == 0 else {})


class TrialCheckpoints:
    """The newest checkpoint of a trial, with what the trial has told beside the state."""

    def __init__(self, job: SweepJob, task: TrialTask, workers: Workers) -> None:
        self._store = CheckpointStore(trial_root(job.root, task.folder))
        self._rank = workers.rank

    def newest(self) -> tuple[TrainingState, TrialMemory] | tuple[None, None]:
        """The state to go on from, and what was saved together with it."""
        while found := self._store.newest_intact():
            try:
                return found[1], self.memory(found[1])
            except FileNotFoundError:  # what a killed driver has left may just have replaced it by a newer one
                again = self._store.newest_intact()
                if again is None or again[0] == found[0]:
                    break
        return None, None

    def memory(self, state: TrainingState) -> TrialMemory:
        """What was saved together with a state."""
        with self._store.folder(f"{ATTEMPT}/{checkpoint_name(state)}") as folder:
            found = json.loads((folder / MEMORY_FILE).read_text(encoding="utf-8"))
            picture = (folder / PICTURE_FILE).read_bytes() if (folder / PICTURE_FILE).exists() else None
        reports = [
            TrialReport(told["step"], tuple(told["values"]), tuple((step, metrics) for step, metrics in told["curves"]))
            for told in found["reports"]
        ]
        return TrialMemory(found["best"], (*reports[:-1], replace(reports[-1], picture=picture)))

    def save(self, state: TrainingState, memory: TrialMemory) -> None:
        """Keep this one; rank 0 alone has something to do."""
        if self._rank == 0:
            reports = [
                {"step": report.step, "values": report.values, "curves": report.curves} for report in memory.reports
            ]
            text, picture = json.dumps({"best": memory.best, "reports": reports}), memory.reports[-1].picture

            def write(folder: Path) -> None:
                (folder / MEMORY_FILE).write_text(text, encoding="utf-8")
                if picture is not None:
                    (folder / PICTURE_FILE).write_bytes(picture)
                state.write_files(folder)  # with the hash, by which a torn checkpoint is told, last

            self._store.replace(ATTEMPT, checkpoint_name(state), write)


def trial_folder(number: int) -> str:
    """The folder of a trial of the study, below the sweep's."""
    return f"trials/{number:04d}"


def trial_root(root: str, folder: str) -> str:
    """Where the checkpoints of the trial in `folder` are, see `cluster.checkpoints`."""
    return join(root, folder, "checkpoints")


class _Loaded:
    """The models of the latest trial in this process."""

    def __init__(self) -> None:
        self._keys: tuple[Any, Any] = (None, None)
        self._model: TextToImage | None = None
        self._rewards: Rewards | None = None

    def get(self, config: RunConfig, device: torch.device) -> tuple[TextToImage, Rewards]:
        """The same objects as before where a trial changes other settings only, weights of rewards among them."""
        model, _ = settle(config.model, training_cost(config), config.cluster.worker_range[1], device)
        given, compiles = config.rewards, model.compile is True
        keys = (
            (model, device),
            (tuple(given.train), given.held_out, given.judges, given.checkpoints, given.dtype, device, compiles),
        )
        if self._model is None or self._keys[0] != keys[0]:
            self._model = None  # room for the other one
            self._model = load_model(model, device)
        if self._rewards is None or self._keys[1] != keys[1]:
            self._rewards = None
            self._rewards = Rewards.load(given, device, compile=compiles)
        self._keys = keys
        weighted = WeightedReward(dict(zip(self._rewards.train.rewards, given.train.values(), strict=True)))
        return self._model, replace(self._rewards, train=weighted)


loaded_models = _Loaded()
