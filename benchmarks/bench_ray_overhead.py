"""Ray Train with one worker against the bare loop: samples per second over the same updates.

    python -m benchmarks.bench_ray_overhead [STEPS]

Both run the preset `toy` with as many threads as the machine has cores; the clock runs from the end of the first
update to the end of the last, over everything in between (checkpoints handed to Ray Train, metrics, progress).
The bare loop runs before and after Ray, so that a machine that warms up or throttles favours neither.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from renege_ray.config.cli import from_args
from renege_ray.config.run import RunConfig
from renege_ray.models.load import load_model
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.weighted import WeightedReward
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.training.inputs import read_inputs
from renege_ray.training.train import Progress, train_global

AIM = 0.95


def configure(folder: Path, steps: int) -> RunConfig:
    """The preset, with as little evaluation as there can be."""
    flags = [
        "--output-dir", str(folder), "--optim.steps", str(steps), "--validation.every", str(steps),
        "--validation.num-prompts", "1", "--validation.num-images", "0", "--prompts.handwritten", "blurry",
        "--rewards.held-out", "[]", "--rewards.judges", "[]", "--test.num-pairs", "1", "--checkpoint.every", "20",
    ]  # fmt: skip
    return from_args(flags, "train_global").config


def rate(seconds: dict[int, float], batch_size: int) -> float:
    """Samples per second between the first and the last of {step: seconds since the start}."""
    first, last = min(seconds), max(seconds)
    return (last - first) * batch_size / (seconds[last] - seconds[first])


def bare(config: RunConfig) -> float:
    """The loop in this process."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rewards = Rewards(
        WeightedReward({r: config.rewards.train[r.name] for r in load_rewards(config.rewards.train).values()})
    )
    seconds: dict[int, float] = {}

    def note(progress: Progress) -> None:
        if "perf/seconds" in progress.metrics:
            seconds[progress.step] = progress.metrics["perf/seconds"]

    train_global(config, load_model(config.model), rewards, read_inputs(config).prompts, report=note)
    return rate(seconds, config.optim.batch_size)


def on_ray(config: RunConfig) -> float:
    """The job, with one worker."""
    from renege_ray.cluster.training.job import run

    if run(config) != 0:
        raise SystemExit("training on Ray failed")
    lines = map(json.loads, (config.output_dir / "metrics.jsonl").read_text().splitlines())
    seconds = {line["step"]: s for line in lines if (s := line["metrics"].get("perf/seconds")) is not None}
    return rate(seconds, config.optim.batch_size)


def main(steps: int = 60) -> float:
    """Print the rates and their ratio; returns the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        config = configure(Path(folder) / "run", steps)
        before = bare(config)
        ray = on_ray(config)
        after = bare(config)
    ratio = ray / ((before + after) / 2)
    print(f"bare loop: {before:.2f} and {after:.2f} samples/s; Ray Train with one worker: {ray:.2f} samples/s")
    print(f"Ray Train / bare loop: {ratio:.3f} over {steps} updates (aim: at least {AIM})")
    return ratio


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
