"""The command line parser that all commands share."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Never

from renege_ray.config.faults import did_you_mean
from renege_ray.errors import UserError

_HELP = Path(__file__).parent / "help"


class ArgumentParser(argparse.ArgumentParser):
    """Raises UserError, which is told in one line, where argparse would print its usage and exit. Flags are written
    out; line breaks of descriptions and examples stay as they are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._commands: argparse.Action | None = None

    def add_subparsers(self, **options: Any) -> Any:
        """Commands, one of which has to be given before anything else."""
        self._commands = super().add_subparsers(required=True, parser_class=ArgumentParser, **options)
        return self._commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with the nearest command for one that does not exist."""
        if self._commands is not None and self._commands.choices is not None and args:
            check_command(args[0], list(self._commands.choices), self.prog)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> Never:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def command_of(job: str) -> str:
    """What a job was called by: its file in `jobs/`, or the installed command."""
    file = f"{job}.py"
    return f"python jobs/{file}" if Path(sys.argv[0]).name == file else f"renege-ray {job.replace('_', '-')}"


def help_text(name: str, command: str = "") -> str:
    """The examples of a command, and what there is to say beyond its flags: a file of the folder `help`."""
    return (_HELP / f"{name}.txt").read_text(encoding="utf-8").replace("{command}", command)


def check_command(name: str, known: Sequence[str], program: str) -> None:
    """Check that there is a command of this name; a flag in its place is for the parser to judge.

    Raises:
        UserError: there is none; the message has the nearest one.
    """
    if not name.startswith("-") and name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"{program}: there is no command {name!r}; {hint}known: {', '.join(known)}")
