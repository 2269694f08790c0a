"""The command `renege-ray` (also `python -m renege_ray`): everything that there is to do, and where to begin."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Never

from renege_ray.config.argument_parser import check_command
from renege_ray.config.cli import from_args, run_job
from renege_ray.errors import UserError
from renege_ray.version import __version__

_HELP = """\
usage: renege-ray COMMAND ...            renege-ray COMMAND --help teaches each of them

Learns the negative embedding of a text-to-image diffusion model, by the gradient of a reward, instead of a negative
prompt that is written by hand. Without further flags everything runs on the small model in the package, on any machine.

begin here:
  renege-ray train-global
      learn one negative embedding for all prompts, in minutes on a CPU
  renege-ray generate --prompt "a big red star" --negative null --negative outputs/RUN/negative_embedding.safetensors
      pictures without it and with it, side by side
  renege-ray evaluate --method null --method handwritten --method global=outputs/RUN/negative_embedding.safetensors
      does it help, on what, by whose judgement, and how sure is that

on your own model:
  renege-ray train-global --preset sd15 --model FOLDER_OR_HUB_ID --dry-run
      what it would take; without --dry-run it starts

commands:
  train-global         learn one negative embedding for all prompts (Ray Train)
  tune-prompts         refine it for each prompt by itself (Ray Data)
  sweep                search for better settings of the training (Ray Tune, Optuna)
  evaluate             compare negatives on the same prompts, seeds and noise (Ray Data)
  generate             make pictures under several negatives
  embedding            inspect, convert, export embedding files; check tuned prompts
  rewards              list the reward models; score pictures
  analyses             the paper's analyses: efficiency, sampler-error, pseudo-positive, distance
  toy                  export the model in the package as a folder for diffusers
  tracking             send to MLflow what a tracking server has missed
  vbench               VBench's own package on a folder of videos
"""

_JOBS = {
    "train_global": "renege_ray.cluster.training.job",
    "tune_prompts": "renege_ray.cluster.pipelines.tuning_job",
    "sweep": "renege_ray.cluster.sweep.job",
    "evaluate": "renege_ray.cluster.pipelines.evaluation_job",
}
_COMMANDS = {
    "embedding": "renege_ray.embeddings.command",
    "rewards": "renege_ray.rewards.command",
    "analyses": "renege_ray.evaluation.analyses.command",
    "toy": "renege_ray.models.toy.command",
    "tracking": "renege_ray.cluster.tracking.command",
    "vbench": "renege_ray.evaluation.vbench",
}


def run_on_ray(job: str, argv: Sequence[str]) -> int:
    """Parse, check, and run a job. Returns the exit code; raises UserError for bad input."""
    invocation = from_args(argv, job)
    run = import_module(_JOBS[job]).run  # Ray and MLflow take seconds to import: not for a misspelt flag
    return int(run(invocation.config, resume=invocation.resume, dry_run=invocation.dry_run))


def train_global(argv: Sequence[str]) -> int:
    """`renege-ray train-global`, `jobs/train_global.py`."""
    return run_on_ray("train_global", argv)


def tune_prompts(argv: Sequence[str]) -> int:
    """`renege-ray tune-prompts`, `jobs/tune_prompts.py`."""
    return run_on_ray("tune_prompts", argv)


def sweep(argv: Sequence[str]) -> int:
    """`renege-ray sweep`, `jobs/sweep.py`."""
    return run_on_ray("sweep", argv)


def evaluate(argv: Sequence[str]) -> int:
    """`renege-ray evaluate`, `jobs/evaluate.py`; with the name of an analysis, that."""
    if argv and not argv[0].startswith("-"):
        return run_command("analyses", argv)
    return run_on_ray("evaluate", argv)


def generate(argv: Sequence[str]) -> int:
    """`renege-ray generate`, `jobs/generate.py`; the last line is the path of what to look at."""
    from renege_ray.evaluation import generate as use_case  # imports torch

    print(use_case.generate(use_case.parse_request(argv))[-1])
    return 0


def run_command(name: str, argv: Sequence[str]) -> int:
    """Run one of the smaller commands. Returns the exit code; raises UserError for bad input."""
    return import_module(_COMMANDS[name]).main(argv) or 0


PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "train-global": train_global,
    "tune-prompts": tune_prompts,
    "sweep": sweep,
    "evaluate": evaluate,
    "generate": generate,
    **{name: partial(run_command, name) for name in _COMMANDS},
}


def main(argv: Sequence[str]) -> int:
    """Run the command that the first word names. Returns the exit code; raises UserError for bad input."""
    name = argv[0] if argv else "--help"
    if name == "--version":
        print(__version__)
    elif name in ("--help", "-h"):
        print(_HELP, end="")
    else:
        check_command(name, list(PROGRAMS), "renege-ray")
        if name not in PROGRAMS:
            raise UserError(f"renege-ray: {name} comes after the command; for example renege-ray train-global {name}")
        return PROGRAMS[name](argv[1:])
    return 0


def entry() -> Never:
    """What the installed command calls."""
    run_job(main, sys.argv[1:])


if __name__ == "__main__":
    entry()
