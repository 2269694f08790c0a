"""Rewards and judges by name.

`load_rewards` gives what can be trained against, `load_scorers` what measures.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

import torch

from renege_ray.models.load import choose_dtype
from renege_ray.rewards.base import RewardModel, Scorer, as_scorer
from renege_ray.rewards.catalogue import JUDGE_NAMES, REWARD_NAMES, REWARDS, VIDEO_METRICS, check_names, full_name
from renege_ray.rewards.checkpoints import locate


def locate_rewards(
    names: Iterable[str], checkpoints: Mapping[str, str | Path] | None = None
) -> dict[str, dict[str, Path]]:
    """The files of rewards and metrics, {name: {source: path}}; nothing is loaded, but the Hub's files are downloaded.

    Args:
        names: of rewards and metrics of videos.
        checkpoints: local copies, {name: file or folder}.

    Raises:
        UserError: a name is not known, or a file is missing.
    """
    names = tuple(names)
    known = REWARDS | VIDEO_METRICS
    check_names(names, (*REWARD_NAMES, *VIDEO_METRICS), "reward")
    return {name: locate(known[full_name(name)], checkpoints or {}) for name in names}


def load_rewards(
    names: Iterable[str],
    device: torch.device | str = "cpu",
    *,
    checkpoints: Mapping[str, str | Path] | None = None,
    dtype: str = "auto",
    compile: bool = False,
) -> dict[str, RewardModel]:
    """Rewards by name, on a device, in the order of the names.

    Args:
        names: see `renege_ray.rewards.catalogue`.
        device: where to.
        checkpoints: local copies of the checkpoints, {name: file or folder}; others come from the Hub.
        dtype: of the towers: "float32", "bfloat16", or "auto" (see `choose_tower_dtype`). The embedded model's are
            float32.
        compile: compile the image towers; see `models.networks.compiled`.

    Raises:
        UserError: a name is not known as a reward (a judge is none: it cannot be trained against), or a file is
            missing or damaged.
    """
    names, device = tuple(names), torch.device(device)
    check_names(names, REWARD_NAMES, "reward")
    located = locate_rewards(names, checkpoints)
    loaded = {name: _load(name, files, device, choose_tower_dtype(dtype, device)) for name, files in located.items()}
    for reward in loaded.values() if compile else ():
        reward.compile_towers()
    return loaded


def load_scorers(
    names: Iterable[str],
    device: torch.device | str = "cpu",
    *,
    checkpoints: Mapping[str, str | Path] | None = None,
    dtype: str = "auto",
    compile: bool = False,
) -> dict[str, Scorer]:
    """Judges, and rewards as scorers, by name, on a device, in the order of the names; arguments as `load_rewards`.

    Raises:
        UserError: a name is known neither as a reward nor as a judge, or a file is missing or damaged.
    """
    names = tuple(names)
    check_names(names, REWARD_NAMES + JUDGE_NAMES, "scorer")
    rewards = load_rewards(
        [name for name in names if name not in JUDGE_NAMES],
        device,
        checkpoints=checkpoints,
        dtype=dtype,
        compile=compile,
    )
    metrics = _video_metrics([name for name in names if name in VIDEO_METRICS], device, checkpoints)
    scorers: dict[str, Scorer] = {name: as_scorer(reward) for name, reward in rewards.items()}
    return {name: scorers.get(name) or metrics.get(name) or _judge() for name in names}


def choose_tower_dtype(name: str, device: torch.device) -> torch.dtype:
    """The floating type of a tower; "auto" is that of models, but float32 where theirs is float16: a reward is a
    twentieth of the work, and the gradient of a cosine is lost among so small exponents.
    """
    chosen = choose_dtype(name, device)
    return torch.float32 if chosen == torch.float16 else chosen


def _load(name: str, files: Mapping[str, Path], device: torch.device, dtype: torch.dtype) -> RewardModel:
    # transformers takes seconds to import: only when a reward is wanted.
    facts = REWARDS[full_name(name)]
    reward: RewardModel = import_module(f"renege_ray.rewards.{facts.module}").load(facts, files, dtype)
    reward.eval().requires_grad_(False).place(device)
    return reward


def _video_metrics(
    names: Iterable[str], device: torch.device | str, checkpoints: Mapping[str, str | Path] | None
) -> dict[str, Scorer]:
    located = locate_rewards(names, checkpoints)
    if not located:
        return {}
    from renege_ray.rewards.video.video_metrics import load

    return {name: load(name, files, torch.device(device)) for name, files in located.items()}


def _judge() -> Scorer:
    from renege_ray.rewards.toy import ToyJudge

    return ToyJudge()
