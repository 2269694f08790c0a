"""`python -m renege_ray.evaluation.analyses`: look into an embedding and its model as the paper does."""

from renege_ray.config.cli import run_job
from renege_ray.evaluation.analyses.command import main

if __name__ == "__main__":
    run_job(main)
