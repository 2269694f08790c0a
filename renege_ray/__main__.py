"""The command `renege-ray` (also `python -m renege_ray`): everything that there is to do, and where to begin."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Never

from renege_ray.config.argument_parser import check_command, help_text
from renege_ray.config.cli import from_args
from renege_ray.config.program import run_job
from renege_ray.errors import UserError
from renege_ray.output.console import say
from renege_ray.version import __version__

_JOBS = {
    "train_global": "renege_ray.cluster.training.job",
    "tune_prompts": "renege_ray.cluster.pipelines.tuning_job",
    "sweep": "renege_ray.cluster.sweep.job",
    "evaluate": "renege_ray.cluster.pipelines.evaluation_job",
}  # each has a `run`
_COMMANDS = {
    "embedding": "renege_ray.embeddings.command",
    "rewards": "renege_ray.rewards.command",
    "analyses": "renege_ray.evaluation.analyses.command",
    "toy": "renege_ray.models.toy.command",
    "tracking": "renege_ray.cluster.tracking.command",
    "vbench": "renege_ray.evaluation.vbench",
}  # each has a `main`


def run_on_ray(job: str, argv: Sequence[str]) -> int:
    """Parse, check, and run a job. Returns the exit code; raises UserError for bad input."""
    invocation = from_args(argv, job)
    run = import_module(_JOBS[job]).run  # Ray and MLflow take seconds to import: not for a misspelt flag
    return int(run(invocation.config, resume=invocation.resume, dry_run=invocation.dry_run, gpu=invocation.gpu))


train_global = partial(run_on_ray, "train_global")  # these, `evaluate` and `generate` are what jobs/*.py call
tune_prompts = partial(run_on_ray, "tune_prompts")
sweep = partial(run_on_ray, "sweep")


def evaluate(argv: Sequence[str]) -> int:
    """`renege-ray evaluate`, `jobs/evaluate.py`; with the name of an analysis, that."""
    if argv and not argv[0].startswith("-"):
        return run_command("analyses", argv)
    return run_on_ray("evaluate", argv)


def generate(argv: Sequence[str]) -> int:
    """`renege-ray generate`, `jobs/generate.py`; the last line is the path of what to look at."""
    from renege_ray.evaluation import generate as use_case  # imports torch

    say(str(use_case.generate(use_case.parse_request(argv))[-1]))
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
        say(__version__)
    elif name in ("--help", "-h"):
        say(help_text("renege_ray").rstrip())
    else:
        check_command(name, list(PROGRAMS), "renege-ray")
        if name not in PROGRAMS:
            raise UserError(f"renege-ray: {name} comes after the command; for example renege-ray train-global {name}")
        return PROGRAMS[name](argv[1:])
    return 0


def entry() -> Never:
    """What the installed command calls."""
    run_job(main)


if __name__ == "__main__":
    entry()
