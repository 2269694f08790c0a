"""`python -m renege_ray.analyses`: look into an embedding and its model as the paper does."""

from renege_ray.analyses.command import main
from renege_ray.cli import run_job

if __name__ == "__main__":
    run_job(main)
