"""The paper's analyses of an embedding and its model, as commands: `python -m renege_ray.analyses --help`."""

from renege_ray.analyses.command import NAMES, main

__all__ = ["NAMES", "main"]
