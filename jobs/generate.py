"""Make images under several negatives, and a side-by-side grid. `--help` lists every setting."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from renege_ray.config.cli import run_job
from renege_ray.evaluation.generate import generate, parse_request


def main(argv: Sequence[str]) -> int:
    """Parse, check, generate; the last line is the path of what to look at. Raises UserError for bad input."""
    files = generate(parse_request(argv))
    print(files[-1])
    return 0


if __name__ == "__main__":
    run_job(main)
