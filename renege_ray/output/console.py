"""What is said to the person at the console. Whatever becomes of the console, saying something never raises."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from renege_ray.errors import told


def say(text: str, *, error: bool = False) -> None:
    """Write a line (or several) to stdout, or to stderr, at once, with paths as the user wrote them.

    Letters that the console's encoding lacks are escaped. Where nobody reads any more (a pipe whose other end is gone,
    a terminal that was closed), this and all that follows is dropped: the work is worth more than the words.
    """
    stream, text = sys.stderr if error else sys.stdout, told(str(text))
    if stream is None:  # a process without a console
        return
    try:
        try:
            stream.write(f"{text}\n")
        except UnicodeEncodeError:
            stream.write(f"{_escaped(text, stream)}\n")
        stream.flush()
    except (OSError, ValueError) as failure:
        if getattr(failure, "errno", None) != errno.ENOSPC:  # a log on a full disk: there may be room again
            _drop(stream)


def prepare_console() -> None:
    """Let what libraries print do no harm either, as far as letters go. For the start of a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave_console() -> None:
    """Flush what is left. Python's own attempt at the exit would turn a failure into a message and exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                _drop(stream)


def _escaped(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _drop(stream: TextIO) -> None:
    """Send a stream's file, and what is still buffered for it, nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
