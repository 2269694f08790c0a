"""Configuration faults in one line: the field, the value, what is expected, and what was probably meant."""

import types
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from renege_ray.config.paths import FAULT

_RESEMBLANCE = 0.6  # below this a guess confuses more than it helps


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """All leaf fields under their dotted names, in order."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found |= fields(info.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = info
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be; None where nothing is alike.

    Dotted names are compared as a whole and by their last part, so that ``lr`` finds ``optim.lr``; initials
    count too, so that ``optim.learning_rate`` does.
    """
    name = name.lower().replace("-", "_")
    leaf = name.rpartition(".")[2]
    initials = "".join(word[0] for word in leaf.split("_") if word)

    def resemblance(candidate: str) -> float:
        candidate_leaf = candidate.rpartition(".")[2]
        alike = SequenceMatcher(None, name, candidate).ratio()
        if "." in candidate:
            alike = max(alike, 0.95 * SequenceMatcher(None, leaf, candidate_leaf).ratio())
            # The section settles it between fields of the same name (validation.every, checkpoint.every).
            alike += 0.1 * SequenceMatcher(None, name.rpartition(".")[0], candidate.rpartition(".")[0]).ratio()
        return max(alike, 0.99 * (len(initials) > 1 and initials == candidate_leaf))

    best = max(known, key=resemblance, default=None)
    return best if best is not None and resemblance(best) >= _RESEMBLANCE else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question, for the middle of a message; nothing where no known name is alike."""
    guess = nearest(name, known)
    return f"did you mean {guess}? " if guess else ""


def unknown_field(
    name: str, model: type[BaseModel], *, flag: str | None = None, other_flags: Iterable[str] = ()
) -> str:
    """The line for a field that does not exist. Where the user wrote it as a flag, flags are suggested."""
    if flag is None:
        guess = nearest(name, [*model.model_fields, *fields(model)])
    else:
        flags = {field: "--" + field.replace("_", "-") for field in fields(model)}
        flags |= {other.removeprefix("--").replace("-", "_"): other for other in other_flags}
        found = nearest(name, flags)
        guess = flags[found] if found else None
    hint = f"did you mean {guess}?" if guess else f"the sections are {', '.join(_sections(model))}"
    return f"{flag or name}: there is no such {'flag' if flag else 'field'}; {hint}"


def _sections(model: type[BaseModel]) -> list[str]:
    return [name for name in model.model_fields if name not in fields(model)]


def explain(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> str:
    """The first fault that `error` found in `data`, in one line."""
    fault = error.errors(include_url=False)[0]
    known = fields(model)
    path = [str(part) for part in fault["loc"]]
    name = next((".".join(path[:n]) for n in range(len(path), 0, -1) if ".".join(path[:n]) in known), None)
    if fault["type"] == "value_error":  # raised by the configuration itself, as a whole sentence
        return str(fault["ctx"]["error"])
    if fault["type"] == FAULT:
        return f"{name}: {fault['msg']}"
    if fault["type"] == "extra_forbidden":
        return unknown_field(".".join(path), model)
    if name is None:
        value = shown_value(fault["input"])
        return f"{'.'.join(path)}: {value} is no group of settings; give a map such as optim: {{lr: 5e-3}}"
    info = known[name]
    example = shown_value(info.get_default(call_default_factory=True))
    value = shown_value(_at(data, name))  # the whole of a list or a map, not the item that is wrong in it
    if fault["type"] in {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}:
        limit = next(iter(fault["ctx"].values()))
        words = fault["type"].replace("greater_than", "at least" if "equal" in fault["type"] else "above")
        words = words.replace("less_than", "at most" if "equal" in fault["type"] else "below").replace("_equal", "")
        return f"{name}: {value} is not allowed, it has to be {words} {limit:g}; for example {example}"
    if fault["type"] == "string_too_short" and value == "''":
        return f"{name}: is empty; for example {example}"
    return f"{name}: {value} is not {expected(info)}; for example {example}"


def _at(data: Any, name: str) -> Any:
    for part in name.split("."):
        data = data[part]
    return data


def expected(info: FieldInfo) -> str:
    """What a field takes, in words."""
    return _kind(info.annotation)


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for info in arguments[1:] for limit in getattr(info, "metadata", [])]
        positive = any(getattr(limit, "ge", None) == 1 or getattr(limit, "gt", None) == 0 for limit in limits)
        return _kind(arguments[0]).replace("a ", "a positive ", 1) if positive else _kind(arguments[0])
    if origin is Literal:
        return " or ".join(map(str, arguments)) if len(arguments) < 3 else f"one of {', '.join(map(str, arguments))}"
    if origin in {Union, types.UnionType}:
        return " or ".join(_kind(argument) for argument in arguments)
    if origin is tuple:
        items = _kind(arguments[0]).removeprefix("a ").removesuffix(" or nothing")
        return f"a list of {items}s" if arguments[-1] is Ellipsis else f"a pair of {items}s"
    if origin is dict:
        return f"a map of names to {_kind(arguments[1]).removeprefix('a ')}s"
    names = {
        int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path",
        types.NoneType: "null",
    }  # fmt: skip
    return names[annotation]


def shown_value(value: Any) -> str:
    """A value about as the user would write it."""
    if isinstance(value, list | tuple):
        # A text with commas or spaces of its own is quoted, so that the list still reads as one.
        words = (repr(item) if isinstance(item, str) and not item.isidentifier() else str(item) for item in value)
        return f"[{', '.join(words)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return repr(value) if value != "auto" else value
    return str(value)
