"""Spaces as YAML files: a list of settings and the distributions that they are drawn from."""

from collections.abc import Mapping
from typing import Any

from renege_ray.config.faults import fields, unknown_field
from renege_ray.config.fingerprint import has_effect
from renege_ray.config.run import RunConfig
from renege_ray.sweeps.space.parameters import HANDWRITTEN, PARAMETER, Parameter, Setting, StepRange, Values, Words
from renege_ray.sweeps.space.place import Place, validated
from renege_ray.sweeps.space.space import Drawing

_ALL_WEIGHTS = "rewards.train.*"
# Trials with different values of these would be judged by different measures.
_MEASURES = ("seed", "prompts.validation", "validation.num_prompts", "validation.seeds_per_prompt", "rewards.held_out")
# What a space may not fix either: every trial has a folder of its own, the sweep has the rest.
OF_THE_SWEEP = ("output_dir", "experiment", "tracking_uri", "prompts.held_out")


class DeclaredSpace(Drawing):
    """The parameters of a YAML space, by field."""

    def __init__(
        self, data: Mapping[str, Any], place: Place, base: RunConfig, preset: Values, overrides: Mapping[str, Any]
    ) -> None:
        if not data:
            place.fail("there is nothing to search over; name a field, for example optim.lr")
        self.place = place
        self.notes: list[str] = []
        found: dict[str, Parameter] = {}
        for name, description in data.items():
            for field in self._named(name, base):
                _check_field(field, place.at(name), base)
                if field in overrides:
                    place.at(name).fail("is fixed in overrides, too; leave it out of one of the two")
                found[field] = validated(PARAMETER, description, place.at(name), Setting(field, preset))
        # What a range of steps is cut to depends on the number of steps.
        self.parameters = dict(sorted(found.items(), key=lambda item: isinstance(item[1], StepRange)))
        if not found:
            place.fail("nothing is left to search over with this preset; name a field, for example optim.lr")

    def _named(self, name: str, base: RunConfig) -> list[str]:
        if name != _ALL_WEIGHTS:
            return [name]
        others = [f"rewards.train.{reward}" for reward in base.rewards.train][1:]  # only their ratios matter
        if not others:
            self.notes.append(f"{_ALL_WEIGHTS}: there is one training reward, so there is nothing to weigh")
        return others

    def draw(self, trial: Any, values: Values) -> dict[str, Any]:
        """As `Drawing.draw`."""
        known, drawn = dict(values), {}
        for name, parameter in self.parameters.items():
            known[name] = drawn[name] = parameter.draw(name, trial, known)
        return drawn

    def stand_for(self, values: Values) -> dict[str, Any]:
        """As `Drawing.stand_for`."""
        points = (parameter.point(name, values[name]) for name, parameter in self.parameters.items())
        return {name: value for point in points for name, value in point.items()}

    def described(self) -> dict[str, str]:
        """{field: distribution in words}."""
        return {name: str(parameter) for name, parameter in self.parameters.items()}

    def fields(self) -> list[str]:
        """The settings that it draws."""
        return [*self.parameters]

    def candidates(self, base: RunConfig) -> list[dict[str, Any]]:
        """Where words are searched over, the preset's handwritten candidates, as first points."""
        if not any(isinstance(parameter, Words) for parameter in self.parameters.values()):
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
