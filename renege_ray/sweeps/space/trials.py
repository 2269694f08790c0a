"""Trials that answer by themselves, where a sampler's would draw: to go from a point to its settings, to find the point
of given settings, and to try the edges of a space.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renege_ray.config.faults import shown_value
from renege_ray.errors import UserError


class OutsideSpace(UserError):
    """A point that is not to be tried: settings that do not go together."""


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`, in steps from `low` where there is a step."""

    low: float
    high: float
    step: float | None
    whole: bool

    def edges(self) -> Sequence[float]:
        """Its ends."""
        return self.low, self.high

    def nearest(self, wanted: Any) -> float:
        """The number nearest to what was wanted; its own least one where that is no number."""
        if isinstance(wanted, bool) or not isinstance(wanted, int | float):
            return self.low
        value: float = min(max(wanted, self.low), self.high)
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
            value = min(value, self.high)
        return round(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choices:
    """A few values without an order."""

    values: Sequence[Any]

    def edges(self) -> Sequence[Any]:
        """All of them."""
        return self.values

    def nearest(self, wanted: Any) -> Any:
        """The value itself where it is one of them; else the nearest number, else the first."""
        if any(wanted == value and type(wanted) is type(value) for value in self.values):
            return wanted
        numbers = [v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool)]
        if numbers and isinstance(wanted, int | float) and not isinstance(wanted, bool):
            return min(numbers, key=lambda value: abs(value - wanted))
        return self.values[0]


class AnsweringTrial(ABC):
    """A trial for a `suggest` function; it notes its answers.

    Attributes:
        params: {parameter: value} of all that it was asked for; as Optuna's.
    """

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}

    @abstractmethod
    def answer(self, name: str, domain: Numbers | Choices) -> Any:
        """The value of one parameter."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """As Optuna's."""
        self.params[name] = float(self.answer(name, Numbers(low, high, step, whole=False)))
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """As Optuna's."""
        self.params[name] = int(self.answer(name, Numbers(low, high, step, whole=True)))
        return self.params[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As Optuna's."""
        self.params[name] = self.answer(name, Choices(choices))
        return self.params[name]


class ReplayingTrial(AnsweringTrial):
    """Answers with a point that was drawn before. Raises UserError where the point lacks a parameter, or where its
    value is not in the space.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__()
        self._given = given

    def answer(self, name: str, domain: Numbers | Choices) -> Any:
        """The given value."""
        if name not in self._given:
            raise UserError(f"{name}: the point {shown_value(dict(self._given))} has no value for it")
        value, nearest = self._given[name], domain.nearest(self._given[name])
        numeric = isinstance(domain, Numbers) and isinstance(value, int | float)
        if value != nearest and not (numeric and abs(value - nearest) <= 1e-9 * max(1.0, abs(nearest))):
            raise UserError(f"{name}: {shown_value(value)} is outside the search space")
        return value


class NearestTrial(AnsweringTrial):
    """Answers with what is nearest to the values wanted.

    Attributes:
        moved: {parameter: (wanted, answered)} where these differ.
        unwanted: parameters that no value was given for.
    """

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        super().__init__()
        self._wanted = wanted
        self.moved: dict[str, tuple[Any, Any]] = {}
        self.unwanted: list[str] = []

    def answer(self, name: str, domain: Numbers | Choices) -> Any:
        """The nearest value."""
        if name not in self._wanted:
            self.unwanted.append(name)
            return domain.edges()[0]
        wanted, nearest = self._wanted[name], domain.nearest(self._wanted[name])
        if wanted != nearest and not (isinstance(nearest, float) and abs(wanted - nearest) <= 1e-9 * abs(nearest)):
            self.moved[name] = wanted, nearest
        return nearest


class EdgeTrial(AnsweringTrial):
    """Answers with the ends of ranges and with any choice, at random."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def answer(self, name: str, domain: Numbers | Choices) -> Any:
        """An edge."""
        return self._rng.choice(list(domain.edges()))
