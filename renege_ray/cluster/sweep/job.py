"""The job `sweep`: Ray Tune runs trials, an Optuna study in the output folder says which.

The study is the only memory of a sweep. A sweep that was killed finds there what is done, what was running and what all
have reported, and goes on with a new Tuner: trials go on from their own checkpoints.
"""

import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from renege_ray.cluster.job import run_repeatable
from renege_ray.cluster.plan import describe_sweep_plan
from renege_ray.cluster.session import ray_session as session  # first: it sets up Ray's environment
from renege_ray.cluster.session.resources import Node, TrialShape, trial_shape
from renege_ray.cluster.session.signals import Abandoned, StopRequest, run_until_stopped
from renege_ray.cluster.sweep.progress import SweepProgress
from renege_ray.cluster.sweep.report import REASON, STEPS
from renege_ray.cluster.sweep.results import Confirmation, keep_results
from renege_ray.cluster.sweep.study import EarlyStop, NotKept, StudySearch, check_same_space
from renege_ray.cluster.sweep.trial import TASK, SweepJob, TrialTask, trial_folder, trial_in_process
from renege_ray.cluster.sweep.watch import TrialWatch, close_trial_log, open_trial_log, read_result
from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.runs import RunLog
from renege_ray.cluster.training.checkpoints import shared_folder
from renege_ray.config.gpus import Gpu
from renege_ray.config.run import RunConfig, check_work_for_everybody
from renege_ray.errors import UserError
from renege_ray.models.load import check_model
from renege_ray.output.console import say
from renege_ray.sweeps.space import SearchSpace, read_search_space
from renege_ray.sweeps.trial import TrialReport, thrifty
from renege_ray.training.inputs import Inputs, read_inputs

JOB = "sweep"
SPACE_FILE = "search_space.json"


def run(config: RunConfig, *, resume: bool = False, dry_run: bool = False, gpu: Gpu | None = None) -> int:
    """Run the trials that are missing, confirm the best setting on fresh seeds, and report. See `run_repeatable`.

    The exit code is 1 where no trial has a value, or a confirming training failed.
    """
    return run_repeatable(
        JOB,
        config,
        resume=resume,
        dry_run=dry_run,
        read=SweepInputs.read,
        plan=partial(_plan, gpu),
        work=_sweep,
        shape_on=_trials_on,
    )


@dataclass(frozen=True)
class SweepInputs:
    """What a sweep reads from files."""

    space: SearchSpace
    inputs: Inputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of it."""
        return (*self.space.notes, *self.inputs.notes)

    @classmethod
    def read(cls, config: RunConfig) -> "SweepInputs":
        """Read and check everything that the configuration names.

        Raises:
            UserError: anything is wrong with it, or the output folder has a sweep of another space.
        """
        space = chosen_space(config)
        check_same_space(config.output_dir, space)
        check_work_for_everybody(config, config.sweep.workers_per_trial, "sweep.workers_per_trial")
        inputs = read_inputs(config)
        for sampling in space.samplings:
            check_model(config.model, sampling, gradients=space.needs_training)
        return cls(space, inputs)


def _trials_on(config: RunConfig, nodes: Sequence[Node], autoscaled: bool) -> TrialShape:
    sweep = config.sweep
    return trial_shape(config.cluster, sweep.workers_per_trial, sweep.max_concurrent, nodes, autoscaled=autoscaled)


def _plan(gpu: Gpu | None, config: RunConfig, read: SweepInputs) -> str:
    space = read.space
    default = thrifty(space.config(config, space.first_points(config)[0]), config, metrics_of(space))
    known = session.uses_own_cluster()
    concurrent = _trials_on(config, [session.this_machine()], False).concurrent if known else None
    return describe_sweep_plan(config, space, default, concurrent, read.notes, gpu)


def _sweep(config: RunConfig, read: SweepInputs, shape: TrialShape, log: RunLog) -> int:
    space, folder = read.space, config.output_dir
    budget = {"space": space.name, "trials": space.trials, "budget_hours": space.budget_hours}
    journal.write_json(folder / SPACE_FILE, budget | space.to_mapping())
    log.artifact(folder / SPACE_FILE)
    root = shared_folder(folder, config.cluster.storage_path)
    return Sweep(SweepJob(config, read.inputs, root, metrics_of(space), shape), space, log).run()


def chosen_space(config: RunConfig) -> SearchSpace:
    """The space, with what flags say of its sampler, scheduler, trials and budget.

    Raises:
        UserError: for anything wrong with it, or a choice that does not fit it.
    """
    space, given = read_search_space(config.sweep.space, config), config.sweep
    if given.scheduler not in {"auto", "none"} and len(space.objectives) > 1:
        raise UserError(
            f"sweep.scheduler: {given.scheduler} compares trials by one objective, and {space.source} has "
            f"{len(space.objectives)}; leave it out, or give --scheduler none"
        )
    if given.scheduler != "auto":
        space = replace(space, scheduler=replace(space.scheduler, name=given.scheduler))
    if given.sampler != "auto":
        space = replace(space, sampler=given.sampler)
    if given.trials != "auto":
        space = replace(space, trials=given.trials)
    if given.budget_hours != "auto":
        space = replace(space, budget_hours=given.budget_hours)
    return space


def metrics_of(space: SearchSpace) -> tuple[str, ...]:
    """The names of the objectives."""
    return tuple(objective.metric for objective in space.objectives)


class Sweep:
    """One start of a sweep."""

    def __init__(self, job: SweepJob, space: SearchSpace, log: RunLog) -> None:
        self._job, self._space, self._log = job, space, log
        self._config, self._folder = job.base, job.base.output_dir
        self._request = StopRequest()
        self._lost = ""
        self._maximise = space.objectives[0].direction == "maximize"
        deadline = time.monotonic() + 3600 * space.budget_hours if space.budget_hours else float("inf")
        self._search = StudySearch(space, self._config, self._task, deadline)

    def run(self) -> int:
        """All stages; returns the exit code."""
        figures = self._run_search()
        if not self._ended:
            ended = [trial for trial in self._search.trials() if trial.state.is_finished()]
            if not any(trial.state == TrialState.COMPLETE for trial in ended):
                return self._failed(ended)
            confirmation = self._confirm()
        if self._ended:
            stopped = self._request.signal is not None
            self._log.finish("interrupted" if stopped else "failed")
            why = "interrupted" if stopped else f"the sweep failed: {self._lost}"
            say(f"{why}; the same command, or --resume {self._folder}, goes on", error=True)
            say(self._log.review())
            return self._request.exit_code or 1
        return keep_results(self._job, self._space, self._search, confirmation, figures, self._log)

    @property
    def _ended(self) -> bool:
        """Whether a signal, or a lost Ray, has ended this start."""
        return self._request.signal is not None or bool(self._lost)

    def _task(self, number: int, point: Mapping[str, Any]) -> TrialTask:
        config = self._space.config(self._config, point)
        task = thrifty(config, self._config, self._job.objectives)
        folder = trial_folder(number)
        return TrialTask(folder, task.model_copy(update={"output_dir": self._folder / folder}))

    def _run_search(self) -> dict[str, float]:
        """Run the trials that the study lacks."""
        ended = [trial for trial in self._search.trials() if trial.state.is_finished()]
        for trial in ended:
            self._mend(trial)
        missing = self._search.missing()
        if ended:
            say(f"{len(ended)} of {self._space.trials} trials are done already")
        if not missing:
            return {}
        progress = SweepProgress(missing, self._job.shape.concurrent, self._maximise, say)
        watch = TrialWatch(self._folder, self._log, progress, self._search)
        self._run_trials(missing, watch, self._search, EarlyStop(self._search))
        if self._search.problem:
            say(f"no further trials: {self._search.problem}", error=True)
        return progress.metrics()

    def _mend(self, trial: FrozenTrial) -> None:
        """Send what a kill has kept from MLflow of a trial that was over."""
        folder = self._folder / trial_folder(trial.number)
        if (folder / journal.SUMMARY).exists():
            self._log.adopt(folder)
        else:
            report = read_result(folder)
            if report is None and trial.state == TrialState.FAIL:
                report = TrialReport(-1, (), status="failed", reason=str(trial.user_attrs.get(REASON, "")))
            log = open_trial_log(self._log, folder, self._task(trial.number, trial.params))
            close_trial_log(log, report, int(trial.user_attrs.get(STEPS, 0)))

    def _confirm(self) -> Confirmation:
        """Train the best setting and the defaults anew on fresh seeds, as far as that is not done yet."""
        confirmation = Confirmation.plan(self._job, self._space, self._search)
        missing = confirmation.missing(self._folder)
        if missing:
            say(f"training the best setting and the defaults on fresh seeds: {len(missing)} trainings")
            progress = SweepProgress(len(missing), self._job.shape.concurrent, None, say)
            watch = TrialWatch(self._folder, self._log, progress)
            self._run_trials(len(missing), watch, InOrder(missing), EarlyStop())
        return confirmation

    def _run_trials(self, count: int, watch: TrialWatch, search: Searcher, stopper: EarlyStop) -> None:
        """Let Ray Tune run trials until they are over, or a signal asks to stop."""

        def stop() -> None:
            stopper.all = watch.stopping = True
            say("stopping; finished trials are kept, running ones go on later (a second signal stops at once)")

        def work() -> None:
            run_on_tune(self._job, count, watch, search, stopper)

        try:
            run_until_stopped(work, stop, self._request, meanwhile=lambda: None, lost=session.LossWatch())
        except Abandoned as why:
            watch.stopping = True  # what goes on in the background has nothing more to say
            self._lost = str(why)
        if self._ended:
            watch.interrupt()

    def _failed(self, ended: Sequence[FrozenTrial]) -> int:
        self._log.finish("failed")
        reasons = [reason for trial in ended if (reason := trial.user_attrs.get(REASON))]
        first = reasons[0] if reasons else self._search.problem or "unknown"
        say(f"no trial has a value: {len(reasons)} failed; the first reason: {first}", error=True)
        say(self._log.review())
        return 1


def run_on_tune(
    job: SweepJob,
    count: int,
    watch: TrialWatch,
    search: Searcher,
    stopper: EarlyStop,
    trainable: Callable[..., None] | None = None,
) -> None:
    """Start a Tuner and wait for its end. What it writes of its own is in Ray's temporary folder and goes with it.

    Args:
        job: goes to every trial.
        count: trials at most.
        watch, search, stopper: hear of trials, suggest them, and stop them.
        trainable: instead of a training (for benchmarks).
    """
    from ray import tune

    from renege_ray.cluster.sweep.group_trial import GroupTrial

    shape = job.shape
    default = trial_in_process if shape.workers == 1 else GroupTrial
    resources = tune.PlacementGroupFactory([shape.trial_resources()])
    with tempfile.TemporaryDirectory(prefix="renege_ray-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable or default, job=job), resources),
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=count,
                max_concurrent_trials=shape.concurrent,
                # A group ends with its trial.
                reuse_actors=shape.workers == 1,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                callbacks=[watch],
                stop=stopper,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                failure_config=tune.FailureConfig(max_failures=job.base.cluster.max_failures),
                verbose=0,
            ),
        )
        tuner.fit()


class InOrder(NotKept, Searcher):
    """A search of Ray Tune's that hands out what it is given, one after the other."""

    def __init__(self, tasks: Sequence[TrialTask]) -> None:
        super().__init__()
        self._left = list(tasks)

    def suggest(self, trial_id: str) -> Any:
        """The next one."""
        return {TASK: self._left.pop(0)} if self._left else self.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to learn from it."""
