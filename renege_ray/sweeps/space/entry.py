"""The values of a search space's file, each with its place, so that every complaint names file, line and key."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Never

from renege_ray.config.faults import did_you_mean, shown_value
from renege_ray.errors import UserError

Lines = Mapping[tuple[str | int, ...], int]
_REQUIRED: Any = object()


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


class Entry:
    """A map of a file, read key by key. Raises UserError for a key that is unknown, missing, or of a wrong kind."""

    def __init__(self, data: Any, place: Place, known: Collection[str]) -> None:
        if not isinstance(data, Mapping):
            place.fail(f"{shown_value(data)} is no map; give one with the keys {', '.join(known)}")
        for key in data:
            if key not in known:
                hint = did_you_mean(str(key), known)
                place.at(key).fail(f"there is no such key; {hint}known: {', '.join(known)}")
        self.data, self.place = data, place

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def value(self, key: str, example: str, default: Any = _REQUIRED) -> Any:
        """Whatever is there. `example` is what a complaint about its absence suggests."""
        if key not in self.data:
            if default is _REQUIRED:
                self.place.fail(f"has no {key}; give one, for example {key}: {example}")
            return default
        return self.data[key]

    def number(self, key: str, example: str, default: Any = _REQUIRED) -> Any:
        """A finite number, or the default."""
        value = self.value(key, example, default)
        if value is not default and not is_number(value):
            self.fail(key, f"{shown_value(value)} is not a number; for example {example}")
        return value

    def whole(self, key: str, example: str, default: Any = _REQUIRED, least: int = 1) -> Any:
        """A whole number from `least` up, or the default."""
        value = self.number(key, example, default)
        if value is not default and not isinstance(value, int):
            self.fail(key, f"{shown_value(value)} is not a whole number; for example {example}")
        if value is not default and value < least:
            self.fail(key, f"{value} is not allowed, it has to be at least {least}; for example {example}")
        return value

    def pair(self, key: str, example: str) -> tuple[Any, Any]:
        """Two numbers, the first not above the second."""
        value = self.value(key, example)
        if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_number, value)):
            self.fail(key, f"{shown_value(value)} is not a pair of numbers; for example {example}")
        if value[0] > value[1]:
            self.fail(key, f"{shown_value(value)}: the first is above the second; exchange them")
        return value[0], value[1]

    def items(self, key: str, example: str, default: Any = _REQUIRED) -> list[Any]:
        """A list that is not empty, or the default."""
        value = self.value(key, example, default)
        if value is not default and (not isinstance(value, list | tuple) or not value):
            self.fail(key, f"{shown_value(value)} is not a list with something in it; for example {example}")
        return list(value)

    def one_of(self, key: str, known: Collection[str], default: Any = _REQUIRED) -> str:
        """One of the known words, or the default."""
        value = self.value(key, next(iter(known)), default)
        if value not in known:
            hint = did_you_mean(value, known) if isinstance(value, str) else ""
            self.fail(key, f"{shown_value(value)} is not known; {hint}known: {', '.join(known)}")
        return str(value)

    def fail(self, key: str, message: str) -> Never:
        """Raise UserError about the value of a key."""
        self.place.at(key).fail(message)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number (and no truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
