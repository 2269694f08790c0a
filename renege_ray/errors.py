"""The one exception that stands for bad input, as opposed to a bug; and any other exception in one line."""

_LONGEST = 300  # characters: some libraries put whole files into a message


class UserError(ValueError):
    """Bad input from the user: one line that names the field, its value and the remedy.

    Jobs print the message as a single line on stderr and exit with code 2, so raise it before a model is
    loaded or Ray is started wherever the input can be judged that early.
    """


def first_line(error: BaseException) -> str:
    """What an exception has to say at first, or the name of its kind."""
    return _shortened((str(error).strip().splitlines() or [type(error).__name__])[0])


def describe(error: BaseException) -> str:
    """The kind and the message of an error in one line."""
    return _shortened(f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
