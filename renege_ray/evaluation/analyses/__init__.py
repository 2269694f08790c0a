"""The paper's analyses of an embedding and its model: `python -m renege_ray.evaluation.analyses --help`."""

from renege_ray.evaluation.analyses.command import NAMES, main

__all__ = ["NAMES", "main"]
