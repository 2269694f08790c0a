"""The fields that hold paths: made absolute as soon as they are read, by the one rule of `renege_ray.output.paths`."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from renege_ray.errors import UserError
from renege_ray.output.paths import SECRET, absolute, absolute_if_there, absolute_path, check_no_secret, holds_secret

FAULT = "path"  # of what cannot be a path; the message is to follow the field's name
METHOD_KINDS = ("null", "handwritten", "global", "prompt", "text")
_EMBEDDED = ("toy", "toy2", "null", "handwritten")  # names in the package, whatever else is in the working folder
_LOCAL_COPY = re.compile(r"([\w-]+)=(.+)", re.DOTALL)
# The first colon that a negative follows, so that an id or a folder may have colons of its own.
METHOD_MODEL = re.compile(rf"model=(.+?):((?:{'|'.join(METHOD_KINDS)})(?:[=,].*)?)", re.DOTALL)
_SQLITE = re.compile(r"(sqlite(?:\+pysqlite)?:///)(.+)", re.DOTALL)


def place(text: str) -> str:
    """A path, or a name of the Hub or of the package."""
    return text if text in _EMBEDDED else absolute_if_there(text)


def named_file(text: str) -> str:
    """A file, or a name in the package, which has no suffix."""
    return absolute(text) if re.search(r"[./~]", text) else text


def prompt_source(text: str) -> str:
    """FILE, FILE:COLUMN, SET=FILE, or the name of a set."""
    if not os.path.exists(text) and (copy := _LOCAL_COPY.fullmatch(text)):
        return f"{copy[1]}={absolute(copy[2])}"
    return named_file(text)


def method(text: str) -> str:
    """What is compared, with the paths of models, embeddings and tables in it."""
    if other := METHOD_MODEL.fullmatch(text.strip()):
        return f"model={place(other[1])}:{method(other[2])}"
    kind, _, value = text.strip().partition("=")
    return f"{kind}={absolute(value)}" if kind in ("global", "prompt") and value.strip() else text


def tracking_uri(text: str) -> str:
    """The URI of a store, with the path of an SQLite file in it."""
    local = _SQLITE.fullmatch(text)
    if local is None:
        return text
    path = absolute(local[2])
    if re.search("[%?]", path.removesuffix(local[2])):  # of the folder that it is relative to
        return "sqlite+pysqlite:///" + path.replace("%", "%25").replace("?", "%3F")
    return f"{local[1]}{path}"


def same_place(value: Any) -> Any:
    """A value, or all that is in it, with one path for all links to a place: for comparisons."""
    if isinstance(value, dict):
        return {key: same_place(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [same_place(item) for item in value]
    return os.path.realpath(value) if isinstance(value, str) and value.startswith("/") else value


def check_no_secrets(value: Any, name: str = "") -> None:
    """Check that nothing in (nested) settings is a URI with a user, a password or a key, but for negative prompts.

    Raises:
        UserError: something is; the message names the field.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            check_no_secrets(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and name != "prompts.handwritten":
        for item in value:
            check_no_secrets(item, name)
    elif name == "tracking_uri" and isinstance(value, str) and holds_secret(value):
        raise UserError(
            f"{name}: holds {SECRET}; set the whole URI as MLFLOW_TRACKING_URI in the environment, and leave this out"
        )
    elif isinstance(value, str):
        check_no_secret(value, name)


def _by(rule: Callable[[Any], Any]) -> AfterValidator:
    def checked(text: Any) -> Any:
        try:
            return rule(text)
        except UserError as error:
            raise PydanticCustomError(FAULT, "{why}", {"why": str(error)}) from None

    return AfterValidator(checked)


Text = Annotated[str, Field(min_length=1)]
PathOrUri = Annotated[Text, _by(absolute)]
PathOrName = Annotated[Text, _by(place)]
NamedFile = Annotated[Text, _by(named_file)]
PromptSource = Annotated[Text, _by(prompt_source)]
MethodText = Annotated[Text, _by(method)]
TrackingUri = Annotated[Text, _by(tracking_uri)]
Folder = Annotated[Path, Field(strict=False), _by(lambda folder: absolute_path(str(folder)))]
