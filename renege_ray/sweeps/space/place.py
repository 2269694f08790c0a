"""Where a value of a search space's file is, and pydantic's complaints about it in one line with that place."""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Never, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from renege_ray.config.faults import did_you_mean, shown_value
from renege_ray.errors import UserError

Lines = Mapping[tuple[str | int, ...], int]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Place:
    """Where in a file a value is: the path of keys to it, and the line of each path."""

    file: str
    lines: Lines
    path: tuple[str | int, ...] = ()

    def at(self, *keys: str | int) -> "Place":
        """The place of a value below this one."""
        return replace(self, path=(*self.path, *keys))

    def fail(self, message: str) -> Never:
        """Raise UserError naming file, line and key."""
        raise UserError(f"{self}: {message}")

    def __str__(self) -> str:
        line = next((self.lines[p] for n in range(len(self.path), 0, -1) if (p := self.path[:n]) in self.lines), None)
        where = f"{self.file}, line {line}" if line else self.file
        return f"{where}: {'.'.join(map(str, self.path))}" if self.path else where


class Described(BaseModel):
    """A map of a file, by its keys. A key that does not exist is a fault, with the nearest one as a hint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise ValueError(f"{shown_value(data)} is no map; give one with the keys {', '.join(cls.model_fields)}")
        for key in data:
            if key not in cls.model_fields:
                words = {"words": unknown_key(key, cls.model_fields), "key": key}
                raise PydanticCustomError("unknown_key", "{words}", words)
        return data


def _ordered(pair: tuple[float, ...]) -> tuple[float, ...]:
    if pair[0] > pair[1]:
        raise ValueError(f"[{pair[0]:g}, {pair[1]:g}]: the first is above the second; exchange them")
    return pair


Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Pair = Annotated[tuple[Real, ...], Field(min_length=2, max_length=2), AfterValidator(_ordered)]


def unknown_key(key: object, known: Collection[str]) -> str:
    """The complaint about a key that does not exist."""
    return f"there is no such key; {did_you_mean(str(key), known)}known: {', '.join(known)}"


def validated(kind: type[Kind] | TypeAdapter[Kind], data: Any, place: Place, context: Any = None) -> Kind:
    """What a value of a file stands for.

    Args:
        kind: the model that it has to fit.
        data: the value.
        place: of the value.
        context: for the model's validators.

    Raises:
        UserError: it does not fit; the first fault, with file, line and key.
    """
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_python(data, context=context)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    for part in fault["loc"]:  # among the keys are names of members of unions, and a key that is missing
        with suppress(LookupError, TypeError):
            data, place = data[part], place.at(part)
    if fault["type"] == "unknown_key":
        place = place.at(fault["ctx"]["key"])
    place.fail(_in_words(fault))


# Python's words in pydantic's messages.
_FOR_USERS = {"Input": "it", "Tuple": "it", "tuple": "list", "dictionary": "map", " after validation": ""}


def _in_words(fault: ErrorDetails) -> str:
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "value_error":  # raised by a validator of ours, as a whole sentence
        return str(context["error"])
    if kind == "unknown_key":
        return fault["msg"]
    if kind == "missing":
        return f"has no {fault['loc'][-1]}; give one, as search_spaces/paper.yaml does"
    if kind in {"union_tag_not_found", "model_attributes_type"}:
        return f"{shown_value(value)} has no distribution; for example {{distribution: uniform, low: 1, high: 2}}"
    if kind in {"literal_error", "union_tag_invalid"}:
        known = re.findall(r"'(\w+)'", context.get("expected") or context["expected_tags"])
        value = context.get("tag", value)
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        return f"{shown_value(value)} is not known; {hint}known: {', '.join(known)}"
    message = re.sub("|".join(_FOR_USERS), lambda found: _FOR_USERS[found[0]], fault["msg"])
    return f"{shown_value(value)} is not allowed, {message}"
