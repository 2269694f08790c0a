"""A folder in diffusers' format: its index, the small configuration files that say what is in it, and its name."""

import json
import re
from pathlib import Path
from typing import Any

from renege_ray.errors import UserError

INDEX = "model_index.json"
# diffusion_pytorch_model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors
_WEIGHTS = re.compile(r"[a-z_]+(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")
# How the Hub's cache calls a repository; what a snapshot is called says nothing.
_CACHED = re.compile(r"/models--([^/]+)/snapshots/[^/]+(?:/(.+))?$")


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


def variants_of(part: Path) -> set[str]:
    """The variants of the safetensors files of a network's folder; "" is that of files without one."""
    matches = [_WEIGHTS.fullmatch(file.name) for file in part.glob("*.safetensors")]
    return {(match[1] or match[2] or "") if match else "" for match in matches}


def sole_variant(folder: Path) -> str | None:
    """What to read where networks have no files without a variant: the only one that all of them have, or None."""
    lacking = [found for part in folder.iterdir() if part.is_dir() and (found := variants_of(part)) and "" not in found]
    common = set.intersection(*lacking) if lacking else set()
    return common.pop() if len(common) == 1 else None


def name_of(given: str) -> str:
    """What a model, or what is added to one, is called, however it was named: a Hub id, also where its files in the
    Hub's cache were given, by a link, too; else the name of the folder, or of the file without its ending.
    """
    path = Path(given).expanduser()
    if not path.exists():
        return given
    for spelling in (path.absolute(), path.resolve()):  # files of the cache are links themselves, to nameless ones
        if found := _CACHED.search(spelling.as_posix()):
            inside = found[2]
            return "/".join([*found[1].split("--", 1), *([Path(inside).with_suffix("").as_posix()] if inside else [])])
    path = path.resolve()
    return path.stem if path.is_file() else path.name
