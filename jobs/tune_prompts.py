"""Refine a negative embedding for each prompt of a benchmark, on Ray Data. `--help` lists every setting."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout, or the working folder of a Ray job

from renege_ray.__main__ import tune_prompts as main
from renege_ray.config.program import run_job

if __name__ == "__main__":
    run_job(main)
