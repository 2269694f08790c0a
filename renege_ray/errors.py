"""The one exception that stands for bad input, as opposed to a bug; full disks; any other exception in one line."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = (*map(os.strerror, _FULL), "disk is full")  # of libraries that have their own exceptions; of SQLite
_LONGEST = 300  # characters: some libraries put whole files into a message


class UserError(ValueError):
    """Bad input from the user: one line that names the field, its value and the remedy.

    Jobs print the message as a single line on stderr and exit with code 2, so raise it before a model is
    loaded or Ray is started wherever the input can be judged that early.
    """


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that there is no room: a full disk, or a user's share of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if any(text in str(cause) for text in _FULL_TEXTS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


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
