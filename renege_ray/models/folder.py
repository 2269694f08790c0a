"""A folder in diffusers' format: its index, and the small configuration files that say what is in it."""

import json
from pathlib import Path
from typing import Any

from renege_ray.errors import UserError

INDEX = "model_index.json"


def read_json(file: Path) -> dict[str, Any]:
    """A configuration file of a model.

    Raises:
        UserError: it is missing or damaged.
    """
    if not file.is_file():
        raise UserError(f"model folder {file.parent} has no file {file.name}: give a folder in diffusers' format")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a map")
    except ValueError as error:
        raise UserError(f"model file {file} is damaged ({error}): export or download the model again") from error
    return content
