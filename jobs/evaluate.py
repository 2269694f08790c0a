"""Compare negatives on the same prompts and seeds, or analyse one. `--help` lists every setting."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout, or the working folder of a Ray job

from renege_ray.config.cli import from_args, run_job


def main(argv: Sequence[str]) -> int:
    """Parse, check, evaluate (or analyse). Returns the exit code; raises UserError for bad input."""
    if argv and not argv[0].startswith("-"):
        from renege_ray.evaluation.analyses import main as analyse  # as the rest, only when it is wanted

        return analyse(argv, prog="jobs/evaluate.py")
    invocation = from_args(argv, "evaluate")
    from renege_ray.cluster.pipelines.evaluation_job import (
        run,  # Ray and MLflow take seconds to import: not for a misspelt flag
    )

    return run(invocation.config, resume=invocation.resume, dry_run=invocation.dry_run)


if __name__ == "__main__":
    run_job(main)
