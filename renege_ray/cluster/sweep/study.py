"""The Optuna study of a sweep: in a file of the output folder, its samplers, and the search that Ray Tune asks.

A trial is RUNNING from the moment that its settings are drawn. In the end it is COMPLETE (trained to its end), PRUNED
(stopped early) or FAIL (with the attribute `reason`). What is RUNNING when a sweep starts again goes on; so the study
alone says what there is to do and what to compare a trial with, and Ray Tune keeps nothing that matters.
"""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Stopper
from ray.tune.search import Searcher

from renege_ray.cluster.sweep.report import OUTSIDE, REASON
from renege_ray.cluster.sweep.storage import STUDY_FILE, open_storage
from renege_ray.cluster.sweep.trial import STATUS, STEP, TASK, TrialTask, objective_key
from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError
from renege_ray.sweeps.space import SchedulerConfig, SearchSpace

SPACE_ATTRIBUTE = "space"
MOST_REJECTED = 200
# So many failures with nothing else before them: the rest would fail likewise.
HOPELESS = 8

optuna.logging.set_verbosity(optuna.logging.WARNING)
logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns of slow steps, and of what is meant
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning, module=r"optuna|renege_ray")


def check_same_space(folder: Path, space: SearchSpace) -> None:
    """Check that the study in a folder, if there is one, is of this space.

    Raises:
        UserError: it is of another one; the message names what differs.
    """
    if not (folder / STUDY_FILE).exists():
        return
    storage = open_storage(folder)
    for name in optuna.get_all_study_names(storage):
        stored = optuna.load_study(study_name=name, storage=storage).user_attrs.get(SPACE_ATTRIBUTE)
        if stored is not None and (difference := space.difference(stored)):
            raise UserError(
                f"--output-dir: {folder} holds a sweep of another space: {difference}; name another folder, or put the "
                "old space back"
            )


def make_sampler(name: str, seed: int, trials: int, done: int) -> optuna.samplers.BaseSampler:
    """TPE (all parameters together, running trials counted as bad ones), NSGA-II, or random.

    `done`: trials that the study has already; a sweep that goes on does not draw the same numbers again.
    """
    seed = (seed * 1_000_003 + done) % 2**32
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=max(4, min(20, trials // 4)), seed=seed)
    # Optuna's 10 random trials would be half of a small sweep.
    startup = max(4, min(10, trials // 4))
    return optuna.samplers.TPESampler(
        n_startup_trials=startup, multivariate=True, group=True, constant_liar=True, seed=seed
    )


def make_pruner(config: SchedulerConfig) -> optuna.pruners.BasePruner:
    """What stops trials early. It knows what the study has kept, so it decides in a later start as it would have."""
    if config.name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(config.grace, config.reduction_factor)
    if config.name == "median":
        return optuna.pruners.MedianPruner(config.min_trials, config.grace, n_min_trials=config.min_trials)
    return optuna.pruners.NopPruner()


class NotKept:
    """Ray Tune pickles what it is given, to restore it some day; a sweep never does, and a space's code cannot be."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class StudySearch(NotKept, Searcher):
    """Ray's search on an Optuna study that outlives the process; it owns the count of trials and their states.

    Attributes:
        study: new, or the one that the sweep's folder has.
        problem: why no further trial was begun, where it is one.
    """

    def __init__(
        self,
        space: SearchSpace,
        base: RunConfig,
        make_task: Callable[[int, Mapping[str, Any]], TrialTask],
        deadline: float = float("inf"),
    ) -> None:
        """`base`: of the sweep. `make_task`: from a trial's number and its point to what it has to do.

        `deadline`: in `time.monotonic()`; no new trial after it.
        """
        super().__init__()  # without a metric: nothing but the study compares trials
        self._storage = open_storage(base.output_dir)
        names = optuna.get_all_study_names(self._storage)
        self.study = optuna.create_study(
            storage=self._storage,
            pruner=make_pruner(space.scheduler),
            study_name=names[0] if names else f"{base.output_dir.name}-{space.name}-{space.fingerprint()[:8]}",
            directions=[objective.direction for objective in space.objectives],
            load_if_exists=True,
        )
        self.study.sampler = make_sampler(space.sampler, base.seed, space.trials, len(self.study.trials))
        self.study.set_user_attr(SPACE_ATTRIBUTE, space.to_mapping())
        self.study.set_metric_names([objective.metric for objective in space.objectives])
        for point in space.first_points(base):
            self.study.enqueue_trial(point, skip_if_exists=True)
        self._space, self._make_task, self._deadline = space, make_task, deadline
        self._keys = [objective_key(place) for place in range(len(space.objectives))]
        self._left_over = [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]
        self._running: dict[str, optuna.trial.Trial] = {}  # by Ray's names
        self.problem = ""

    def trials(self) -> list[FrozenTrial]:
        """All trials but those that were drawn outside the space, and those that only wait for their turn."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and OUTSIDE not in trial.user_attrs
        ]

    def missing(self) -> int:
        """Trials to run: left over from an earlier start, and new ones."""
        return len(self._left_over) + max(0, self._space.trials - len(self.trials()))

    def suggest(self, trial_id: str) -> Any:
        """The next trial: one that an earlier start has left over, or a new one."""
        while self._left_over:
            # Its settings are drawn already, but for what a kill came before.
            if config := self._drawn(self._taken_up(self._left_over.pop(0)), trial_id):
                return config
        if not self._goes_on():
            return self.FINISHED
        for _ in range(MOST_REJECTED):
            if config := self._drawn(self.study.ask(), trial_id):
                self.problem = ""
                return config
        self.problem = f"{MOST_REJECTED} points in a row are outside the space: {self.problem}"
        return self.FINISHED

    def _taken_up(self, number: int) -> optuna.trial.Trial:
        """A trial that runs, as the process had it that drew it."""
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        return optuna.trial.Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def _goes_on(self) -> bool:
        """Whether another trial is to be begun."""
        trials = self.trials()
        if len(trials) >= HOPELESS and all(trial.state == TrialState.FAIL for trial in trials):
            self.problem = f"the first {len(trials)} trials failed"
            return False
        return len(trials) < self._space.trials and time.monotonic() <= self._deadline

    def _drawn(self, trial: optuna.trial.Trial, trial_id: str) -> dict[str, Any] | None:
        """What Ray Tune is to hand to the trial; None if its settings do not make a configuration."""
        self._space.suggest(trial)
        try:
            task = self._make_task(trial.number, trial.params)
        except UserError as error:
            self.problem = str(error)
            trial.set_user_attr(OUTSIDE, True)
            self._tell(trial, TrialState.FAIL, self.problem)
            return None
        self._running[trial_id] = trial
        return {TASK: task}

    def judge(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Keep the value of a validation; returns whether the trial is to be stopped at it.

        What a trial tells again when it goes on has been judged. Optuna keeps no values of several objectives.
        """
        trial = self._running[trial_id]
        if len(self._keys) > 1 or STEP not in result:
            return False
        if result[STEP] in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            return False
        trial.report(result[self._keys[0]], result[STEP])
        # Of a trial that is over, too: others are compared with it.
        return trial.should_prune() and not result.get(STATUS)

    def note(self, trial_id: str, **facts: Any) -> None:
        """Set user attributes of a trial that runs."""
        for name, value in facts.items():
            self._running[trial_id].set_user_attr(name, value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Close a trial, unless its process died: then `fail` is told the reason."""
        if error or trial_id not in self._running:
            return
        trial, result = self._running.pop(trial_id), result or {}
        status = result.get(STATUS, "")
        if status == "failed":
            self._tell(trial, TrialState.FAIL)  # the reason has been noted
        elif status:
            self._tell(trial, TrialState.COMPLETE, values=[float(result[key]) for key in self._keys])
        else:
            self._tell(trial, TrialState.PRUNED)

    def fail(self, trial_id: str, reason: str) -> None:
        """Close a trial whose process died."""
        if trial := self._running.pop(trial_id, None):
            self._tell(trial, TrialState.FAIL, reason)

    def _tell(
        self, trial: optuna.trial.Trial, state: TrialState, reason: str = "", values: list[float] | None = None
    ) -> None:
        if reason:
            trial.set_user_attr(REASON, reason)
        self.study.tell(trial, values, state)


class EarlyStop(NotKept, Stopper):
    """Ray Tune asks it after each report whether a trial is to be stopped, and whether all are.

    Attributes:
        all: to be set where all are to stop.
    """

    def __init__(self, search: StudySearch | None = None) -> None:
        """`search`: of the trials; none where they do not compete."""
        self._search = search
        self.all = False

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether to stop this trial."""
        return self._search is not None and self._search.judge(trial_id, result)

    def stop_all(self) -> bool:
        """Whether to stop all."""
        return self.all
