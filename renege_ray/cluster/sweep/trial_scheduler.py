"""Which trials of a sweep are stopped early: Ray's schedulers, and how they learn what earlier starts have seen.

A sweep that goes on has a new scheduler. It is told the validations of all earlier trials, so that its rungs (ASHA) or
its medians are what they were.
"""

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from renege_ray.cluster.sweep.trial import STEP, objective_key
from renege_ray.sweeps.space import SchedulerConfig


def make_scheduler(config: SchedulerConfig, most_updates: int, direction: str) -> TrialScheduler:
    """The scheduler, judging by the first objective at equal numbers of updates."""
    common: dict[str, Any] = {"time_attr": STEP, "metric": objective_key(0), "mode": direction[:3]}
    if config.name == "asha":
        # A trial that has made all its updates ends by itself, with its results: one step more is never reached.
        most = max(most_updates + 1, config.grace)
        return ASHAScheduler(max_t=most, grace_period=config.grace, reduction_factor=config.reduction_factor, **common)
    if config.name == "median":
        # It would pause trials that it has nothing to compare with; an endless slice of time lets them run.
        return MedianStoppingRule(
            grace_period=config.grace, min_samples_required=config.min_trials, min_time_slice=math.inf, **common
        )
    return FIFOScheduler()


class Recollection:
    """Tells a scheduler of validations that it has not seen, as results that need no decision any more."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler
        self._told: set[str] = set()

    def tell(self, trial: Trial, values: Mapping[int, float]) -> None:
        """Values {step: objective} of a trial that goes on; once, however often it does."""
        if trial.trial_id in self._told:
            return
        self._told.add(trial.trial_id)
        for step, value in values.items():
            self._scheduler.on_trial_add(None, trial)
            self._scheduler.on_trial_complete(None, trial, {STEP: step, objective_key(0): value})
        self._scheduler.on_trial_add(None, trial)

    def tell_of_ended(self, number: int, values: Mapping[int, float]) -> None:
        """Values of a trial that is over."""
        self.tell(Trial(f"earlier-{number}", trial_id=f"earlier-{number}", stub=True), values)
