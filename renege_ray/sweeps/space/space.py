"""A search space as a sweep uses it: from a trial to a point, from a point to a configuration."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from renege_ray.config.faults import fields, shown_value
from renege_ray.config.run import RunConfig, SamplingConfig, split_name, to_mapping, with_values
from renege_ray.errors import UserError
from renege_ray.sweeps.space.metrics import method_of
from renege_ray.sweeps.space.parameters import Values
from renege_ray.sweeps.space.place import Described, Place
from renege_ray.sweeps.space.trials import NearestTrial, OutsideSpace, ReplayingTrial

Point = Mapping[str, Any]  # {name for the sampler: value}, as `optuna.Trial.params`


class Objective(Described):
    """What trials are judged by: a metric of the validation, and whether more of it is better."""

    metric: str
    direction: Literal["maximize", "minimize"]


@dataclass(frozen=True)
class SchedulerConfig:
    """Which trials are stopped early."""

    name: str
    """One of "asha" (successive halving), "median" (stops what is below the median of the finished ones), "none"."""
    grace: int = 1
    """Updates that every trial makes."""
    reduction_factor: int = 3
    """Of ASHA: one of so many trials goes on at each rung."""
    min_trials: int = 3
    """Of the median: trials that there have to be to compare with."""


class Drawing(ABC):
    """How a space draws its settings: declared in YAML, or coded in Python.

    Attributes:
        place: where in the file.
        notes: what the user should know.
    """

    place: Place
    notes: Sequence[str] = ()

    @abstractmethod
    def draw(self, trial: Any, values: Values) -> dict[str, Any]:
        """{dotted name: value} of what a trial draws, given those of preset and overrides."""

    @abstractmethod
    def stand_for(self, values: Values) -> dict[str, Any]:
        """{name for the sampler: value} of the point that settings {dotted name: value} stand for, as far as known."""

    @abstractmethod
    def described(self) -> dict[str, str]:
        """{setting: its distribution in words}; of code a hash."""

    def fields(self) -> Sequence[str] | None:
        """The settings that it draws; None where only a trial tells."""
        return None

    def candidates(self, base: RunConfig) -> list[dict[str, Any]]:
        """Settings of the preset's that make first points, besides those that it begins with."""
        return []


@dataclass(frozen=True)
class SearchSpace:
    """Read by `read_search_space`, for a certain preset."""

    name: str
    source: Path
    objectives: tuple[Objective, ...]
    sampler: str
    scheduler: SchedulerConfig
    trials: int
    overrides: Mapping[str, Any]
    """{dotted field: value} that all trials have."""
    drawing: Drawing = field(repr=False)
    fixed: Values = field(repr=False)
    """{dotted name: value} of preset and overrides."""
    budget_hours: float | None = None
    """No trial begins after so many; None is no limit."""
    most_updates: int = 0
    """The most updates (`optim.steps`) of any trial."""
    samplings: tuple[SamplingConfig, ...] = ()
    """All ways of sampling at the edges of the space, for the model to judge."""
    samples_factor: float | None = None
    """A trial learns from so many times the preset's samples at most; None is no limit."""
    preset_samples: int = 0
    """Updates times batch size of the preset."""
    wanted_points: tuple[Values, ...] = ()
    """{dotted name: value} of further first points."""
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

    @property
    def parameters(self) -> dict[str, str]:
        """{setting: its distribution in words}; {"code": hash} of a Python file."""
        return self.drawing.described()

    @property
    def needs_training(self) -> bool:
        """Whether an objective is of the learned embedding; the others are measured before the first update."""
        return any(method_of(objective.metric) == "global" for objective in self.objectives)

    @property
    def limits(self) -> list[str]:
        """What settings have to meet together, in words."""
        if self.samples_factor is None:
            return []
        samples = "optim.steps * optim.batch_size"
        return [f"{samples} <= {self.samples_factor:g} * preset.optim.steps * preset.optim.batch_size"]

    def suggest(self, trial: Any) -> None:
        """Draw all parameters by a trial's `suggest_float`, `suggest_int` and `suggest_categorical`."""
        with suppress(OutsideSpace):  # the configuration of the point will say so
            self.drawing.draw(trial, self.fixed)

    def settings(self, point: Point) -> dict[str, Any]:
        """{dotted name: value} of the settings that a point stands for.

        Raises:
            OutsideSpace: they do not go together.
            UserError: the point lacks a parameter, has one too many, or a value outside the space.
        """
        trial = ReplayingTrial(point)
        drawn = self.drawing.draw(trial, self.fixed)
        if unknown := [name for name in point if name not in trial.params]:
            raise UserError(f"{unknown[0]}: the search space {self.name} has no such parameter at this point")
        if self.samples_factor is not None:
            values = dict(self.fixed) | drawn
            if values["optim.steps"] * values["optim.batch_size"] > self.samples_factor * self.preset_samples:
                raise OutsideSpace(f"{self.limits[0]}: not met by {shown_value(drawn)}")
        return drawn

    def config(self, base: RunConfig, point: Point) -> RunConfig:
        """The configuration of the trial at a point; `base` is the preset with the user's flags.

        Raises:
            OutsideSpace, UserError: as `settings`, or the settings are no valid configuration.
        """
        return with_values(base, dict(self.overrides) | self.settings(point))

    def first_points(self, base: RunConfig) -> list[dict[str, Any]]:
        """The points to try before the sampler draws any: first the preset's own settings, then those of the file.

        A setting of the preset that is outside the space is taken to the nearest value inside; `notes` says so.
        """
        values = values_of(base)
        points = [self.nearest_point(values).params]
        points += [self.nearest_point(values | dict(wanted)).params for wanted in self.wanted_points]
        return [point for place, point in enumerate(points) if point not in points[:place]]

    def nearest_point(self, values: Values) -> NearestTrial:
        """The point of given settings, or the nearest to them in the space."""
        trial = NearestTrial(self.drawing.stand_for(values))
        self.suggest(trial)
        return trial

    def to_mapping(self) -> dict[str, Any]:
        """All that makes two sweeps comparable, in plain maps and lists: not its name, nor the number of trials."""
        return {
            "parameters": self.parameters,
            "constraints": self.limits,
            "overrides": json.loads(json.dumps(dict(self.overrides))),
            "first_points": json.loads(json.dumps([dict(values) for values in self.wanted_points])),
            "objectives": [f"{objective.direction} {objective.metric}" for objective in self.objectives],
            "sampler": self.sampler,
            "scheduler": dict(vars(self.scheduler)),
        }

    def fingerprint(self) -> str:
        """16 hex digits, the same for two spaces exactly if their mappings are."""
        text = json.dumps(self.to_mapping(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    def difference(self, stored: Mapping[str, Any]) -> str:
        """What differs from a mapping that was stored, in one line; "" where nothing does."""
        here, there = _leaves(self.to_mapping()), _leaves(stored)
        for name in [*here, *(name for name in there if name not in here)]:
            if name not in here or name not in there or here[name] != there[name]:
                old, new = (shown_value(side[name]) if name in side else "not there" for side in (there, here))
                return f"{name} is {old} in the stored sweep, {new} in {self.source}"
        return ""


def values_of(config: RunConfig) -> dict[str, Any]:
    """{dotted name: value} of all fields, and of the weight of each training reward."""
    data = to_mapping(config)
    values = {}
    for name in fields(RunConfig):
        value: Any = data
        for key in split_name(name):
            value = value[key]
        values[name] = value
    return values | {f"rewards.train.{name}": weight for name, weight in config.rewards.train.items()}


def _leaves(data: Mapping[str, Any]) -> dict[str, Any]:
    """One level below the top: {"parameters.optim.lr": ..., "sampler": ...}."""
    leaves: dict[str, Any] = {}
    for name, value in data.items():
        leaves |= (
            {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return leaves
