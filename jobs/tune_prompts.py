"""Refine a negative embedding for each prompt of a benchmark, on Ray Data. `--help` lists every setting."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout, or the working folder of a Ray job

from renege_ray.config.cli import from_args, run_job


def main(argv: Sequence[str]) -> int:
    """Parse, check, tune. Returns the exit code; raises UserError for bad input."""
    invocation = from_args(argv, "tune_prompts")
    from renege_ray.cluster.pipelines.tuning_job import (
        run,  # Ray and MLflow take seconds to import: not for a misspelt flag
    )

    return run(invocation.config, resume=invocation.resume, dry_run=invocation.dry_run)


if __name__ == "__main__":
    run_job(main)
