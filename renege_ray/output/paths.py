"""Paths as people write them: made absolute where they come in (`~`, relative ones), and told as they were written.

Everything behind the command line has absolute paths alone: workers run elsewhere, and a run goes on from any folder.
"""

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path

from renege_ray.errors import UserError, masked, note_written

SECRET = "a user, a password or a key, which would be written to config.yaml"
_REMEDY = "set it in the environment (for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and leave it out here"
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class PathFault(UserError, ArgumentTypeError):
    """What cannot be a path or a URI; of a flag, the command line tells it with the flag's name."""


def absolute(text: str) -> str:
    """A path that was written with `~`, `~user` or relative to the working folder; what follows a file's name (as in
    FILE:COLUMN) stays. A URI is none, and stays.

    Raises:
        UserError: there is no such user, or a URI holds a password.
    """
    if URI.match(text):
        check_no_secret(text)
        return text
    expanded = os.path.expanduser(text)
    first = text.split("/", 1)[0].split(":", 1)[0]
    if text.startswith("~") and expanded == text and not os.path.lexists(first):
        raise PathFault(f"{text!r} is in the home folder of a user that does not exist here; write the whole path")
    found = str(Path(expanded).absolute())
    if found != text and first:
        for written in (first, text):  # what lies beside it is told alike
            note_written(str(Path(os.path.expanduser(written)).absolute()), written)
    return found


def absolute_if_there(text: str) -> str:
    """The same for a text that may also be a name: a path is what begins like one, or is there."""
    begins = text.startswith(("~", "./", "../")) or text in (".", "..") or URI.match(text)
    return absolute(text) if begins or os.path.exists(text) else text


def absolute_path(text: str) -> Path:
    """The path that a flag's text stands for."""
    return Path(absolute(text))


def holds_secret(text: str) -> bool:
    """Whether a URI in the text holds what nobody should read in files, in MLflow, or on the console."""
    return masked(text) != text


def check_no_secret(text: str, field: str = "") -> None:
    """Raise UserError, which names the field, if a URI in the text does."""
    if holds_secret(text):
        raise PathFault(f"{f'{field}: ' if field else ''}{masked(text)!r} holds {SECRET}; {_REMEDY}")
