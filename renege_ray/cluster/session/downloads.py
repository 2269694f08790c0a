"""What a job takes from the Hugging Face Hub is downloaded once on each machine, before its workers start.

The driver's own machine has it by then: that is where everything was checked. Several processes of one machine that
miss a file all the same (it was added to the cluster later) wait for one another: the Hub's cache locks each file.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from renege_ray.config.run import ModelConfig, RewardsConfig
from renege_ray.errors import UserError, describe
from renege_ray.models.toy import EMBEDDED_MODELS
from renege_ray.output.console import say
from renege_ray.output.progress import duration
from renege_ray.rewards.catalogue import REWARDS, VIDEO_METRICS, full_name
from renege_ray.rewards.load import locate_rewards

_SECONDS_BETWEEN_LOOKS = 1.0


def download(models: Sequence[ModelConfig], rewards: Sequence[str], config: RewardsConfig) -> None:
    """Have all files of models and rewards in this machine's cache of the Hub.

    Args:
        models: all that are from the Hub among them.
        rewards: names of rewards and metrics, as far as they have files.
        config: of the rewards.

    Raises:
        UserError: a file cannot be had.
    """
    locate_rewards(rewards, config.checkpoints)
    if models:
        from renege_ray.models.loading.hub import find_folder  # imports diffusers

        for model in models:
            find_folder(model)


def downloads_of(
    models: Iterable[ModelConfig], rewards: Iterable[str], config: RewardsConfig
) -> Callable[[], None] | None:
    """`download` for what is from the Hub among models and rewards; None where nothing is."""
    from_hub = [
        model for model in models if model.id not in EMBEDDED_MODELS and not Path(model.id).expanduser().exists()
    ]
    known, given = REWARDS | VIDEO_METRICS, {full_name(name) for name in config.checkpoints}
    names = [
        name
        for name in rewards
        if (facts := known.get(full_name(name))) and any(source.name not in given for source in facts.sources)
    ]
    return partial(download, from_hub, names, config) if from_hub or names else None


def download_on_others(work: Callable[[], None], *, gpus: float) -> None:
    """Do the work on each machine of the cluster, but for this one, that a worker may come to.

    Args:
        work: see `downloads_of`.
        gpus: of a worker: with some, machines without are left out.

    Raises:
        UserError: it cannot be done on one of them; the message names the machine.
    """
    here, started = ray.get_runtime_context().get_node_id(), time.monotonic()
    waiting: dict[Any, str] = {}
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and node["NodeID"] != here and has.get("CPU") and (not gpus or has.get("GPU")):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, scheduling_strategy=there)(_problem_of)
            waiting[task.remote(work)] = node["NodeManagerAddress"]
    count = len(waiting)
    if count:
        say(f"{count} other machine(s) download what they miss of models and rewards")
    while waiting:
        done, _ = ray.wait([*waiting], timeout=_SECONDS_BETWEEN_LOOKS)
        for task in done:
            address = waiting.pop(task)
            try:
                problem = ray.get(task)
            except ray.exceptions.RayError as error:
                problem = describe(error)
            if problem:
                raise UserError(f"on the machine {address}: {problem}")
            say(f"{count - len(waiting)}/{count} have all ({address}, after {duration(time.monotonic() - started)})")


def _problem_of(work: Callable[[], None]) -> str:
    """Why it cannot be done, "" if it has been done."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""
