"""The rewards of a run: what is trained against, and what is only looked at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from renege_ray.config.run import RewardsConfig
from renege_ray.rewards.base import Reward, Scorer, as_scorer, measure, prepare_texts
from renege_ray.rewards.catalogue import beside
from renege_ray.rewards.load import load_rewards, load_scorers
from renege_ray.rewards.weighted import WeightedReward

REWARD = "reward"  # the name of the weighted sum of the training rewards among the scores


@dataclass(frozen=True)
class Rewards:
    """What is trained against, and what is only looked at: held-out rewards and judges."""

    train: WeightedReward
    held_out: Sequence[Reward] = ()
    judges: Sequence[Scorer] = ()

    @classmethod
    def load(cls, config: RewardsConfig, device: torch.device | str = "cpu", *, compile: bool = False) -> "Rewards":
        """Those that a configuration names, with image towers that are compiled or not.

        Raises:
            UserError: a name that is not known, or weights that are missing or damaged.
        """
        options: dict[str, Any] = {"checkpoints": config.checkpoints, "dtype": config.dtype, "compile": compile}
        trained = load_rewards(config.train, device, **options)
        return cls(
            WeightedReward({reward: config.train[name] for name, reward in trained.items()}),
            tuple(load_rewards(config.held_out, device, **options).values()),
            tuple(load_scorers(config.judges, device, **options).values()),
        )

    def scorers(self) -> list[Scorer]:
        """All of them; the weighted training reward goes by the name `reward`."""
        return [_TrainingReward(self.train), *(as_scorer(reward) for reward in self.held_out), *self.judges]


class _TrainingReward:
    """The weighted training reward, under the name `reward`, its parts and what these measure beside, as one scorer."""

    def __init__(self, reward: WeightedReward) -> None:
        self._reward = reward
        others = [other for name in reward.names for other in beside(name)]
        self.names: tuple[str, ...] = (REWARD, *reward.names, *others)

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            rewards = self._reward.rewards
            scores = {name: s for one in rewards for name, s in measure(one, images, prompts).items()}
            return {REWARD: self._reward.combine(scores), **scores}

    def prepare(self, prompts: Iterable[str], say: Callable[[str], None] = lambda line: None) -> None:
        prepare_texts(self._reward.rewards, prompts, say)
