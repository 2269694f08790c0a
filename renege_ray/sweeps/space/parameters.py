"""The parameters of a declared space: how each setting is drawn, and the point that stands for a given setting.

Bounds are numbers, or follow from the preset (`factor: [0.1, 4]` of its value), so that one space fits the embedded
model and the paper's presets alike. Settings that depend on each other are drawn so that no invalid point exists, from
distributions that are the same in every trial: samplers that model parameters jointly (TPE, NSGA-II) ask for that.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from renege_ray.config.faults import shown_value
from renege_ray.sweeps.space.entry import Entry, Place, is_number

STEP_RANGE = "sampling.gradient_steps"
SAMPLER_STEPS = "sampling.num_inference_steps"
HANDWRITTEN = "prompts.handwritten"

Values = Mapping[str, Any]  # {dotted name: value}


class Parameter(Protocol):
    """One setting that is drawn."""

    @property
    def field(self) -> str:
        """Its dotted name."""

    def draw(self, trial: Any, values: MutableMapping[str, Any]) -> None:
        """Draw it, and put it among the values that were drawn or fixed before."""

    def point(self, value: Any) -> dict[str, Any]:
        """{name for the sampler: value} that stands for a value of the setting, which may be outside the space."""

    def __str__(self) -> str:
        """Its distribution in words."""


@dataclass(frozen=True)
class Number:
    """A number between bounds, both included."""

    field: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def draw(self, trial: Any, values: MutableMapping[str, Any]) -> None:
        """As `Parameter.draw`."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            values[self.field] = trial.suggest_int(self.field, int(self.low), int(self.high), step=step, log=self.log)
        else:
            values[self.field] = trial.suggest_float(self.field, self.low, self.high, step=self.step, log=self.log)

    def point(self, value: Any) -> dict[str, Any]:
        """As `Parameter.point`."""
        return {self.field: value}

    def __str__(self) -> str:
        kind = ("int" if self.whole else "") + ("log" if self.log else "") + ("" if self.whole else "uniform")
        return f"{kind} {self.low:g} to {self.high:g}{f' in steps of {self.step:g}' if self.step else ''}"


@dataclass(frozen=True)
class Categorical:
    """One of several values. Lists and maps go by their text, since samplers keep plain values only."""

    field: str
    choices: tuple[Any, ...]

    def draw(self, trial: Any, values: MutableMapping[str, Any]) -> None:
        """As `Parameter.draw`."""
        labels = [_label(choice) for choice in self.choices]
        values[self.field] = self.choices[labels.index(trial.suggest_categorical(self.field, labels))]

    def point(self, value: Any) -> dict[str, Any]:
        """As `Parameter.point`."""
        return {self.field: _label(value)}

    def __str__(self) -> str:
        return f"one of {shown_value(self.choices)}"


@dataclass(frozen=True)
class StepRange:
    """`sampling.gradient_steps` as its first step and its width; it is cut where it would leave the sampler's steps."""

    field: str
    first: tuple[int, int]
    width: tuple[int, int]

    def draw(self, trial: Any, values: MutableMapping[str, Any]) -> None:
        """As `Parameter.draw`; the number of sampler steps has to be among the values."""
        first = trial.suggest_int(f"{self.field}.first", *self.first)
        width = trial.suggest_int(f"{self.field}.width", *self.width)
        steps = values[SAMPLER_STEPS]
        first = min(first, steps - 1)
        values[self.field] = [first, min(first + width, steps)]

    def point(self, value: Any) -> dict[str, Any]:
        """As `Parameter.point`."""
        return step_range_point(value)

    def __str__(self) -> str:
        return f"from step {self.first[0]} to {self.first[1]}, {self.width[0]} to {self.width[1]} steps wide"


def step_range_point(value: Any) -> dict[str, Any]:
    """First step and width of a range of steps."""
    first, last = value
    return {f"{STEP_RANGE}.first": first, f"{STEP_RANGE}.width": last - first}


@dataclass(frozen=True)
class Words:
    """A handwritten negative: each word is in it or not, in the order of the list; where none is, the first one is."""

    field: str
    words: tuple[str, ...]

    def draw(self, trial: Any, values: MutableMapping[str, Any]) -> None:
        """As `Parameter.draw`."""
        chosen = [word for word in self.words if trial.suggest_categorical(f"{self.field}: {word}", [False, True])]
        values[self.field] = [", ".join(chosen or self.words[:1])]

    def point(self, value: Any) -> dict[str, Any]:
        """The words of the first candidate of `value`."""
        present = {word.casefold() for word in split_words(value[0])}
        return {f"{self.field}: {word}": word.casefold() in present for word in self.words}

    def __str__(self) -> str:
        return f"words of {shown_value(self.words)}"


def split_words(text: str) -> list[str]:
    """The parts of a negative prompt between commas."""
    return [part for part in (" ".join(piece.split()) for piece in text.split(",")) if part]


def read_parameter(field: str, data: Any, place: Place, preset: Values) -> Parameter:
    """A parameter from its entry in a file. Raises UserError naming file, line and key."""
    if not isinstance(data, dict) or "distribution" not in data:
        place.fail(f"{shown_value(data)} has no distribution; for example {{distribution: uniform, low: 1, high: 2}}")
    distribution = Entry(data, place, [*data]).one_of("distribution", [*_READERS])
    return _READERS[distribution](field, data, place, preset)


def _read_number(field: str, data: Any, place: Place, preset: Values) -> Number:
    kind = data["distribution"]
    keys = ["distribution", "low", "high", "factor"]
    keys += {"int": ["step", "log"], "quniform": ["step"]}.get(kind, [])
    entry = Entry(data, place, keys)
    whole, log = kind == "int", kind == "loguniform" or entry.value("log", "true", False)
    if not isinstance(log, bool):
        entry.fail("log", f"{shown_value(log)} is not true or false")
    low, high = _bounds(entry, field, preset, whole)
    step: float | None = entry.number("step", "0.5") if kind == "quniform" else entry.number("step", "2", None)
    if step is not None and (step <= 0 or (whole and not isinstance(step, int))):
        entry.fail("step", f"{step:g} is not {'a whole number ' if whole else ''}above 0")
    if log and step is not None:
        entry.fail("step", "a logarithmic scale has no steps; leave step or log out")
    if log and low <= 0:
        place.fail(f"a logarithmic scale has no {low:g}; give bounds above 0, or another distribution")
    if step is not None:
        high = low + math.floor((high - low) / step + 1e-9) * step  # the last step within the bounds
    return Number(field, low, high, step, log, whole)


def _bounds(entry: Entry, field: str, preset: Values, whole: bool) -> tuple[float, float]:
    """`low` and `high`, or `factor` of the preset's value."""
    if "factor" in entry:
        if "low" in entry or "high" in entry:
            entry.fail("factor", "takes the place of low and high; leave one of the two out")
        base = preset[field]
        low, high = entry.pair("factor", "[0.1, 10]")
        if not is_number(base) or base == 0:
            entry.fail(
                "factor", f"the preset has {field} {shown_value(base)}, which cannot be scaled; give low and high"
            )
        low, high = (low * base, high * base) if base > 0 else (high * base, low * base)
        return (round(low), round(high)) if whole else (float(f"{low:.6g}"), float(f"{high:.6g}"))
    read = entry.whole if whole else entry.number
    low, high = (read(key, example, **({"least": -(10**18)} if whole else {})) for key, example in _EXAMPLES.items())
    if low > high:
        entry.fail("low", f"{low:g} is above high, {high:g}; exchange them")
    return (low, high) if whole else (float(low), float(high))


_EXAMPLES = {"low": "1", "high": "10"}


def _read_categorical(field: str, data: Any, place: Place, preset: Values) -> Categorical:
    entry = Entry(data, place, ["distribution", "choices", "factors"])
    if "factors" in entry:
        base, factors = preset[field], entry.items("factors", "[0.5, 1, 2]")
        if "choices" in entry or not is_number(base) or not all(map(is_number, factors)):
            entry.fail("factors", f"takes numbers, a number to scale ({field} is {shown_value(base)}), and no choices")
        scaled = [base * factor for factor in factors]
        choices = [round(value) if isinstance(base, int) else float(f"{value:.6g}") for value in scaled]
    else:
        choices = entry.items("choices", "[1, 2, 4]")
    labels = [_label(choice) for choice in choices]
    for place_in_list, label in enumerate(labels):
        if label in labels[:place_in_list]:
            entry.fail("choices" if "choices" in entry else "factors", f"{shown_value(label)} is given twice")
    return Categorical(field, tuple(choices))


def _read_range(field: str, data: Any, place: Place, preset: Values) -> StepRange:
    entry = Entry(data, place, ["distribution", "first", "width", "unit"])
    if field != STEP_RANGE:
        entry.fail("distribution", f"range is for {STEP_RANGE}; {field} takes another distribution")
    steps = preset[SAMPLER_STEPS]
    share = entry.one_of("unit", ["steps", "share"], "steps") == "share"
    bounds = []
    for key, example, least in (("first", "[0, 6]", 0), ("width", "[3, 14]", 1)):
        low, high = entry.pair(key, "[0.1, 0.5]" if share else example)
        if share:
            if not 0 <= low <= high <= 1:
                entry.fail(key, f"[{low}, {high}] are no shares of {SAMPLER_STEPS}; give numbers from 0 to 1")
            low, high = (max(least, round(part * steps)) for part in (low, high))
        elif not (isinstance(low, int) and isinstance(high, int) and least <= low <= high <= steps):
            entry.fail(
                key,
                f"[{low}, {high}] are not whole steps from {least} to the {steps} of {SAMPLER_STEPS}; "
                f"for example {example}, or unit: share",
            )
        bounds.append((low, high))
    first, width = bounds
    return StepRange(field, (first[0], min(first[1], steps - 1)), width)


def _read_words(field: str, data: Any, place: Place, preset: Values) -> Words:
    entry = Entry(data, place, ["distribution", "choices"])
    if field != HANDWRITTEN:
        entry.fail("distribution", f"words are for {HANDWRITTEN}; {field} takes another distribution")
    if entry.value("choices", "preset") == "preset":
        words = [word for text in preset[HANDWRITTEN] for word in split_words(text)]
    else:
        words = entry.items("choices", "[blurry, low quality], or choices: preset")
        if not all(isinstance(word, str) and word.strip() for word in words):
            entry.fail("choices", f"{shown_value(words)} are not all words")
    different = {word.casefold(): word for word in reversed(words)}  # of two that differ in capitals, the first counts
    return Words(field, tuple(word for word in dict.fromkeys(words) if different[word.casefold()] == word))


_READERS: dict[str, Callable[[str, Any, Place, Values], Parameter]] = {
    "uniform": _read_number,
    "loguniform": _read_number,
    "int": _read_number,
    "quniform": _read_number,
    "categorical": _read_categorical,
    "range": _read_range,
    "words": _read_words,
}


def _label(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else shown_value(value)
