"""Several rewards as one: R(x, c) = sum over k of w_k R_k(x, c)."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.rewards.base import Reward


class WeightedReward:
    """The weighted sum of rewards, itself a `Reward`.

    Attributes:
        rewards: R_k.
        names: their names, distinct, in the same order.
        weights: {name of R_k: w_k}.
        name: the sum in words, as in "hps + 0.5 clip"; the bare name of a single reward of weight 1.
    """

    def __init__(self, weights: Mapping[Reward, float]) -> None:
        """Weigh rewards.

        Raises:
            UserError: no reward, two of one name, a weight that is not finite, or none but zero weights.
        """
        self.rewards = tuple(weights)
        self.names = tuple(reward.name for reward in self.rewards)
        self.weights = {reward.name: float(weight) for reward, weight in weights.items()}
        if not self.rewards:
            raise UserError("rewards.train is empty: name at least one reward and its weight")
        if len(self.weights) != len(self.rewards):
            raise UserError(f"rewards.train names a reward twice: {', '.join(self.names)}")
        if not all(map(math.isfinite, self.weights.values())) or not any(self.weights.values()):
            raise UserError(f"rewards.train {self.weights}: weights must be finite and not all zero")
        self.name = " + ".join(name if w == 1 else f"{w:g} {name}" for name, w in self.weights.items())

    @property
    def terms(self) -> dict[str, tuple[Reward, float]]:
        """{name: (R_k, w_k)}."""
        return {reward.name: (reward, self.weights[reward.name]) for reward in self.rewards}

    def parts(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """R_k of each image: {name: (B,)}, differentiable in the images (B, 3, height, width)."""
        return {reward.name: reward(images, prompts) for reward in self.rewards}

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """sum over k of w_k R_k, (B,), from `parts`."""
        first, *others = (weight * parts[name] for name, weight in self.weights.items())
        return sum(others, start=first)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """R of each image, (B,), differentiable in the images (B, 3, height, width)."""
        return self.combine(self.parts(images, prompts))
