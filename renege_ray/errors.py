"""The one exception that stands for bad input, as opposed to a bug; full disks; any other exception in one line. And
how paths and URIs are told to people: as they were written, and without passwords.
"""

import errno
import os
import re
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = (*map(os.strerror, _FULL), "disk is full")  # of libraries that have their own exceptions; of SQLite
_LONGEST = 300  # characters: some libraries put whole files into a message
_written: dict[str, str] = {}  # by the absolute path: how it was written
_QUOTED = r"[^\s'\"?#"
# A user (and a password, which may have slashes that should have been %2F) before an @; but paths, of local files or
# behind a port, may have an @ of their own.
_USER = re.compile(
    rf"(?<!sqlite://)(?<!file://)(?<=://)(?:{_QUOTED}/]*|(?!{_QUOTED}/:]*:\d+/){_QUOTED}@]*:{_QUOTED}]*)@",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"([?&;][\w.-]*(?:secret|passw|pwd|token|access_?key|account_?key|api_?key|credential|sig)[\w.-]*=)[^&\s'\"]+",
    re.IGNORECASE,
)


class UserError(ValueError):
    """Bad input from the user: one line that names the field, its value and the remedy.

    Jobs print the message as a single line on stderr and exit with code 2, so raise it before a model is
    loaded or Ray is started wherever the input can be judged that early. Paths are told as they were written, and
    URIs without passwords.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(told(message))


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that there is no room: a full disk, or a user's share of it."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _FULL) or any(text in str(cause) for text in _FULL_TEXTS)
        for cause in causes(error)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from, one behind the other."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def full_line(error: BaseException) -> str:
    """What to do about a disk without room."""
    return f"there is no room on the disk ({describe(error)}); make room, and the same command or --resume goes on"


def first_line(error: BaseException) -> str:
    """What an exception has to say at first, or the name of its kind."""
    return _shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def describe(error: BaseException) -> str:
    """The kind and the message of an error in one line."""
    return _shortened(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def note_written(path: str, written: str) -> None:
    """Tell an absolute path, and what lies below it, as it was written from now on."""
    _written[path] = written


def as_written(text: str) -> str:
    """The paths in a text as they were written, where they were."""
    for path in sorted(_written, key=len, reverse=True):
        if path in text:
            text = _written[path].join(re.split(rf"(?<![\w./-]){re.escape(path)}(?![\w.-])", text))
    return text


def masked(text: str) -> str:
    """The text with the users, passwords and keys of every URI in it replaced."""
    if "://" not in text:
        return text
    return _KEY.sub(r"\1***", _USER.sub("***@", text))


def told(text: str) -> str:
    """A text as people are to see it."""
    return as_written(masked(text))
