"""The one exception that stands for bad input, as opposed to a bug; and any exception in one line."""


class UserError(ValueError):
    """Bad input from the user: one line that names the field, its value and the remedy.

    Jobs print the message as a single line on stderr and exit with code 2, so raise it before a model is
    loaded or Ray is started wherever the input can be judged that early.
    """


def describe(error: BaseException, longest: int = 300) -> str:
    """The kind and the message of an error in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
