"""The parameters of a declared space: how each setting is drawn, and the point that stands for a given setting.

Each is a model of its description in the file. Bounds are numbers, or follow from the preset (`factor: [0.1, 4]` of its
value), so that one space fits the embedded model and the paper's presets alike. Settings that depend on each other are
drawn so that no invalid point exists, from distributions that are the same in every trial: samplers that model
parameters jointly (TPE, NSGA-II) ask for that.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, TypeAdapter, ValidationInfo, field_validator, model_validator

from renege_ray.config.faults import shown_value
from renege_ray.sweeps.space.place import Described, Pair, Real

STEP_RANGE = "sampling.gradient_steps"
SAMPLER_STEPS = "sampling.num_inference_steps"
HANDWRITTEN = "prompts.handwritten"

_Word = Annotated[str, StringConstraints(strict=True, pattern=r"\S")]
Values = Mapping[str, Any]  # {dotted name: value}


class Setting(NamedTuple):
    """What the parameter is for, as the context that a description is validated in.

    Attributes:
        field: its dotted name.
        preset: the values that bounds may follow from.
    """

    field: str
    preset: Values

    def number(self, what: str) -> Any:
        """The preset's value. Raises ValueError where it is no number to scale."""
        value = self.preset[self.field]
        if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
            raise ValueError(f"the preset has {self.field} {shown_value(value)}, which cannot be scaled; give {what}")
        return value


class Parameter(Described):
    """One setting that is drawn. Its text is its distribution in words.

    Attributes:
        only_for: the field that the distribution is for; "" is any.
    """

    only_for: ClassVar[str] = ""
    distribution: str

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo[Setting]) -> Self:
        if self.only_for not in {"", info.context.field}:
            kind, field = self.distribution, info.context.field
            raise ValueError(f"the distribution {kind} is for {self.only_for}; {field} takes another one")
        return self

    @abstractmethod
    def draw(self, name: str, trial: Any, values: Values) -> Any:
        """The value of the setting `name`; `values` are those that were drawn or fixed before."""

    def point(self, name: str, value: Any) -> dict[str, Any]:
        """{name for the sampler: value} that stands for a value of the setting, which may be outside the space."""
        return {name: value}


class Number(Parameter):
    """A number between bounds, both included: `low` and `high`, or `factor` of the preset's value."""

    distribution: Literal["uniform", "loguniform", "quniform", "int"]
    low: Real = math.nan
    high: Real = math.nan
    factor: Pair | None = None
    step: Annotated[Real, Field(gt=0)] | None = None
    log: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo[Setting]) -> Self:
        """With the bounds that follow from the preset, and the last step within them."""
        kind, step, log = self.distribution, self.step, self.log or self.distribution == "loguniform"
        if self.log and kind != "int":
            raise ValueError("log is for the distribution int; leave it out, or take loguniform")
        if step is None and kind == "quniform":
            raise ValueError("has no step; give one, for example step: 0.5")
        if step is not None and kind in {"uniform", "loguniform"}:
            raise ValueError(f"step is for quniform and int; leave it out of {kind}")
        low, high = self._bounds(info.context)
        if kind == "int" and not all(number is None or number.is_integer() for number in (low, high, step)):
            raise ValueError("int takes whole numbers as low, high and step; for example low: 1, high: 10")
        if log and step is not None:
            raise ValueError("a logarithmic scale has no steps; leave step or log out")
        if log and low <= 0:
            raise ValueError(f"a logarithmic scale has no {low:g}; give bounds above 0, or another distribution")
        if step is not None:
            high = low + math.floor((high - low) / step + 1e-9) * step
        return self.model_copy(update={"low": low, "high": high, "log": log})

    def _bounds(self, setting: Setting) -> tuple[float, float]:
        missing = [key for key in ("low", "high") if key not in self.model_fields_set]
        if self.factor is None:
            if missing:
                raise ValueError(f"has no {missing[0]}; give low and high, or factor, for example factor: [0.1, 10]")
            if self.low > self.high:
                raise ValueError(f"low {self.low:g} is above high, {self.high:g}; exchange them")
            return self.low, self.high
        if len(missing) < 2:
            raise ValueError("factor takes the place of low and high; leave one of the two out")
        base = setting.number("low and high")
        low, high = sorted(factor * base for factor in self.factor)
        if self.distribution == "int":
            return float(round(low)), float(round(high))
        return float(f"{low:.6g}"), float(f"{high:.6g}")

    def draw(self, name: str, trial: Any, values: Values) -> float:
        """As `Parameter.draw`."""
        if self.distribution == "int":
            return int(trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log))
        return float(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    def __str__(self) -> str:
        whole = self.distribution == "int"
        kind = ("int" if whole else "") + ("log" if self.log else "") + ("" if whole else "uniform")
        return f"{kind} {self.low:g} to {self.high:g}{f' in steps of {self.step:g}' if self.step else ''}"


class Categorical(Parameter):
    """One of several values, or of the preset's value times `factors`. Lists and maps go by their text, since samplers
    keep plain values only.
    """

    distribution: Literal["categorical"]
    choices: tuple[Any, ...] = ()
    factors: tuple[Real, ...] = ()

    @model_validator(mode="after")
    def _resolved(self, info: ValidationInfo[Setting]) -> Self:
        """With the choices that follow from the preset."""
        if bool(self.choices) == bool(self.factors):
            raise ValueError("takes either choices or factors; for example choices: [1, 2, 4]")
        choices = self.choices
        if self.factors:
            base = info.context.number("choices")
            scaled = [base * factor for factor in self.factors]
            choices = tuple(round(value) if isinstance(base, int) else float(f"{value:.6g}") for value in scaled)
        resolved = self.model_copy(update={"choices": choices})
        labels = resolved.labels()
        if twice := [label for place, label in enumerate(labels) if label in labels[:place]]:
            raise ValueError(f"{shown_value(twice[0])} is given twice; leave one of the two out")
        return resolved

    def labels(self) -> list[Any]:
        """What the sampler calls the choices."""
        return [_label(choice) for choice in self.choices]

    def draw(self, name: str, trial: Any, values: Values) -> Any:
        """As `Parameter.draw`."""
        labels = self.labels()
        return self.choices[labels.index(trial.suggest_categorical(name, labels))]

    def point(self, name: str, value: Any) -> dict[str, Any]:
        """As `Parameter.point`."""
        return {name: _label(value)}

    def __str__(self) -> str:
        return f"one of {shown_value(self.choices)}"


class StepRange(Parameter):
    """`sampling.gradient_steps` as its first step and its width; it is cut where it would leave the sampler's steps."""

    only_for = STEP_RANGE
    distribution: Literal["range"]
    unit: Literal["steps", "share"] = "steps"
    first: Pair
    width: Pair

    @field_validator("first", "width")
    @classmethod
    def _in_steps(cls, pair: tuple[float, float], info: ValidationInfo[Setting]) -> tuple[int, ...]:
        steps, is_first, (low, high) = info.context.preset[SAMPLER_STEPS], info.field_name == "first", pair
        least = 0 if is_first else 1
        if info.data.get("unit") == "share":
            if not 0 <= low <= high <= 1:
                raise ValueError(f"[{low:g}, {high:g}] are no shares of {SAMPLER_STEPS}; give numbers from 0 to 1")
            low, high = (max(least, round(part * steps)) for part in pair)
        elif not (low.is_integer() and high.is_integer() and least <= low <= high <= steps):
            raise ValueError(
                f"[{low:g}, {high:g}] are not whole steps from {least} to the {steps} of {SAMPLER_STEPS}; "
                f"for example {'[0, 6]' if is_first else '[3, 14]'}, or unit: share"
            )
        return int(low), min(int(high), steps - 1) if is_first else int(high)

    def draw(self, name: str, trial: Any, values: Values) -> list[int]:
        """As `Parameter.draw`; the number of sampler steps has to be among the values."""
        first = trial.suggest_int(f"{name}.first", *self.first)
        width = trial.suggest_int(f"{name}.width", *self.width)
        steps = values[SAMPLER_STEPS]
        first = min(first, steps - 1)
        return [first, min(first + width, steps)]

    def point(self, name: str, value: Any) -> dict[str, Any]:
        """As `Parameter.point`."""
        first, last = value
        return {f"{name}.first": first, f"{name}.width": last - first}

    def __str__(self) -> str:
        return f"from step {self.first[0]} to {self.first[1]}, {self.width[0]} to {self.width[1]} steps wide"


class Words(Parameter):
    """A handwritten negative: each word is in it or not, in the order of the list; where none is, the first one is."""

    only_for = HANDWRITTEN
    distribution: Literal["words"]
    choices: Annotated[tuple[_Word, ...], Field(min_length=1)] | Literal["preset"] = Field(
        "preset", validate_default=True
    )

    @field_validator("choices")
    @classmethod
    def _different(cls, choices: Any, info: ValidationInfo[Setting]) -> tuple[str, ...]:
        """Those of the preset's candidates, where they are asked for; of two that differ in capitals, the first."""
        if choices == "preset":
            choices = [word for text in info.context.preset[HANDWRITTEN] for word in split_words(text)]
        different = {word.casefold(): word for word in reversed(choices)}
        return tuple(word for word in dict.fromkeys(choices) if different[word.casefold()] == word)

    def draw(self, name: str, trial: Any, values: Values) -> list[str]:
        """As `Parameter.draw`."""
        chosen = [word for word in self.choices if trial.suggest_categorical(f"{name}: {word}", [False, True])]
        return [", ".join(chosen or self.choices[:1])]

    def point(self, name: str, value: Any) -> dict[str, Any]:
        """The words of the first candidate of `value`."""
        present = {word.casefold() for word in split_words(value[0])}
        return {f"{name}: {word}": word.casefold() in present for word in self.choices}

    def __str__(self) -> str:
        return f"words of {shown_value(self.choices)}"


# By the key `distribution`.
PARAMETER: TypeAdapter[Parameter] = TypeAdapter(
    Annotated[Number | Categorical | StepRange | Words, Field(discriminator="distribution")]
)


def split_words(text: str) -> list[str]:
    """The parts of a negative prompt between commas."""
    return [part for part in (" ".join(piece.split()) for piece in text.split(",")) if part]


def _label(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else shown_value(value)
