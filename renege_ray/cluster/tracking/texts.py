"""The sentences that tracking prints, and the names and texts that MLflow takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from renege_ray.cluster.tracking.uris import program
from renege_ray.errors import masked
from renege_ray.output.names import with_hash

LONGEST_PARAM = 6000  # MLflow's limits
LONGEST_NAME = 250


def away_line(uri: str, folder: Path, says: str, error: BaseException) -> str:
    """The one warning that a run prints about a store that does not take its results, and what that does instead."""
    return (
        f"MLflow at {masked(uri)} {says} ({one_line(error)}); the run goes on and keeps"
        f" everything in {folder}. What is missing is sent when it takes it, or later by:"
        f" {send_command(uri, folder)}"
    )


def send_command(uri: str, folder: Path) -> str:
    """How to send a folder later."""
    return f"{program('renege-ray')} tracking send {folder} --tracking-uri {masked(uri)}"


def one_line(error: BaseException, longest: int = 200) -> str:
    """The message of an error as one line without secrets."""
    text = masked(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


def safe_name(name: str) -> str:
    """A parameter's or metric's name with everything that MLflow refuses replaced by a dash, and then a piece of the
    name's hash: two names never become one.
    """
    parts = (part for part in re.sub(r"[^/\w.\- ]", "-", name).split("/") if part.strip("."))
    safe = "/".join(parts)
    return safe if safe == name and len(safe) <= LONGEST_NAME else with_hash(safe, name, LONGEST_NAME)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and short texts, as MLflow has them: {"optim": {"lr": 0.1}} -> {"optim.lr": "0.1"}."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = masked(str(value))
            flat[safe_name(f"{prefix}{key}")] = (
                text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 3] + "..."
            )
    return flat
