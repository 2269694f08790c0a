"""The command line parser that all commands share."""

import argparse
from typing import Never

from renege_ray.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """Raises UserError, which is told in one line, where argparse would print its usage and exit."""

    def error(self, message: str) -> Never:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message.removeprefix('argument ')}; see --help")
