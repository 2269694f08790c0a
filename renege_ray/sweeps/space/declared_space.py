"""Spaces as YAML files: a list of settings and the distributions that they are drawn from."""

from collections.abc import Mapping
from typing import Any

from renege_ray.config.faults import fields, shown_value, unknown_field
from renege_ray.config.fingerprint import has_effect
from renege_ray.config.run import RunConfig
from renege_ray.sweeps.space.entry import Entry, Place
from renege_ray.sweeps.space.parameters import (
    HANDWRITTEN,
    Parameter,
    StepRange,
    Values,
    Words,
    read_parameter,
)

_ALL_WEIGHTS = "rewards.train.*"
# Trials with different values of these would be judged by different measures.
_MEASURES = ("seed", "prompts.validation", "validation.num_prompts", "validation.seeds_per_prompt", "rewards.held_out")
# What a space may not fix either: every trial has a folder of its own, the sweep has the rest.
OF_THE_SWEEP = ("output_dir", "experiment", "tracking_uri", "prompts.held_out")


class DeclaredSpace:
    """The parameters of a YAML space.

    Attributes:
        place: of all of them. notes: what the user should know of them.
    """

    def __init__(self, entry: Entry, base: RunConfig, preset: Values, overrides: Mapping[str, Any]) -> None:
        data = entry.value("parameters", "{optim.lr: {distribution: loguniform, factor: [0.1, 10]}}")
        self.place = place = entry.place.at("parameters")
        if not isinstance(data, dict) or not data:
            place.fail(f"{shown_value(data)} names nothing to search over; for example optim.lr")
        self.parameters: list[Parameter] = []
        self.notes: list[str] = []
        for name, description in data.items():
            for field in self._named(name, base):
                _check_field(field, place.at(name), base)
                if field in overrides:
                    place.at(name).fail("is fixed in overrides, too; leave it out of one of the two")
                self.parameters.append(read_parameter(field, description, place.at(name), preset))
        # What a range of steps is cut to depends on the number of steps.
        self.parameters.sort(key=lambda parameter: isinstance(parameter, StepRange))
        if not self.parameters:
            place.fail("nothing is left to search over with this preset")

    def _named(self, name: str, base: RunConfig) -> list[str]:
        if name != _ALL_WEIGHTS:
            return [name]
        others = [f"rewards.train.{reward}" for reward in base.rewards.train][1:]  # only their ratios matter
        if not others:
            self.notes.append(f"{_ALL_WEIGHTS}: there is one training reward, so there is nothing to weigh")
        return others

    def draw(self, trial: Any, values: Values) -> dict[str, Any]:
        """See `SearchSpace.draw`."""
        known = dict(values)
        for parameter in self.parameters:
            parameter.draw(trial, known)
        return {parameter.field: known[parameter.field] for parameter in self.parameters}

    def stand_for(self, values: Values) -> dict[str, Any]:
        """See `SearchSpace.stand_for`."""
        return {
            name: value
            for parameter in self.parameters
            for name, value in parameter.point(values[parameter.field]).items()
        }

    def described(self) -> dict[str, str]:
        """{field: distribution in words}."""
        return {parameter.field: str(parameter) for parameter in self.parameters}

    def fields(self) -> list[str]:
        """The settings that it draws."""
        return [parameter.field for parameter in self.parameters]

    def candidates(self, base: RunConfig) -> list[dict[str, Any]]:
        """Where words are searched over, the preset's handwritten candidates, as first points."""
        if not any(isinstance(parameter, Words) for parameter in self.parameters):
            return []
        return [{HANDWRITTEN: [text]} for text in base.prompts.handwritten]


def _check_field(name: str, place: Place, base: RunConfig) -> None:
    """Check that a field exists, and that searching over it makes sense."""
    known = fields(RunConfig)
    weights = [f"rewards.train.{reward}" for reward in base.rewards.train]
    if name not in known and name not in weights:
        if name.startswith("rewards.train."):
            place.fail(f"is none of the preset's training rewards; known: {', '.join(weights)}, or {_ALL_WEIGHTS}")
        place.fail(unknown_field(name, RunConfig).partition(": ")[2])
    if name in _MEASURES or name in OF_THE_SWEEP:
        place.fail("is the same for all trials of a sweep, or they could not be compared; leave it out")
    if not has_effect(name):
        place.fail("has no effect on what a trial learns; leave it out")
