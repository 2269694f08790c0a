"""Rewards and judges by name.

`load_rewards` gives what can be trained against, `load_scorers` what measures.
"""

import difflib
from collections.abc import Iterable

import torch

from renege_ray.errors import UserError
from renege_ray.rewards.base import Reward, Scorer, as_scorer
from renege_ray.rewards.weighted import WeightedReward

__all__ = [
    "JUDGE_NAMES",
    "REWARD_NAMES",
    "Reward",
    "Scorer",
    "WeightedReward",
    "as_scorer",
    "check_names",
    "load_rewards",
    "load_scorers",
]

REWARD_NAMES = ("toy", "toy_held_out")
JUDGE_NAMES = ("judge",)


def check_names(names: Iterable[str], known: Iterable[str], field: str) -> None:
    """Check names without loading anything.

    Raises:
        UserError: a name is not among the known ones; the nearest of them is suggested.
    """
    known = tuple(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "give one of these"
            raise UserError(f"{field} {name!r} is not known: {hint} ({', '.join(known)})")


def load_rewards(names: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Reward]:
    """Rewards by name, on a device, in the order of the names.

    Raises:
        UserError: a name is not known as a reward (a judge is none: it cannot be trained against).
    """
    names = tuple(names)
    check_names(names, REWARD_NAMES, "reward")
    return {name: _toy_reward(name, torch.device(device)) for name in names}


def load_scorers(names: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Scorer]:
    """Judges, and rewards as scorers, by name, on a device, in the order of the names.

    Raises:
        UserError: a name is known neither as a reward nor as a judge.
    """
    names = tuple(names)
    check_names(names, REWARD_NAMES + JUDGE_NAMES, "scorer")
    return {name: _scorer(name, torch.device(device)) for name in names}


def _toy_reward(name: str, device: torch.device) -> Reward:
    from renege_ray.rewards.toy import ToyReward

    reward: Reward = ToyReward(name).to(device)
    return reward


def _scorer(name: str, device: torch.device) -> Scorer:
    if name in REWARD_NAMES:
        return as_scorer(_toy_reward(name, device))
    from renege_ray.rewards.toy import ToyJudge

    judge: Scorer = ToyJudge()
    return judge
