"""The one exception that stands for bad input, as opposed to a bug."""


class UserError(ValueError):
    """Bad input from the user: one line that names the field, its value and the remedy.

    Jobs print the message as a single line on stderr and exit with code 2, so raise it before a model is
    loaded or Ray is started wherever the input can be judged that early.
    """
