"""What judges images: a `Reward` is differentiable and can be trained against, a `Scorer` only measures.

Both take images (B, 3, height, width) in [0, 1] and B prompts in words, and judge each image by itself:
`reward(images, prompts)[i] == reward(images[i:i+1], prompts[i:i+1])[0]`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Reward(Protocol):
    """A frozen, differentiable judgement; higher is better."""

    @property
    def name(self) -> str:
        """What the configuration calls it, also the name of its metric."""
        ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, height, width) in [0, 1] and B prompts -> (B,) float32, differentiable in the images."""
        ...


class Scorer(Protocol):
    """Named measurements without a gradient."""

    @property
    def names(self) -> tuple[str, ...]:
        """The keys of what `score` returns."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,)}; NaN where a measurement does not apply to an image or its prompt."""
        ...


class RewardScorer:
    """A reward as a scorer of one name."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.names: tuple[str, ...] = (reward.name,)

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,)}, without a gradient."""
        with torch.no_grad():
            return {self._reward.name: self._reward(images, prompts)}


def as_scorer(reward: Reward) -> Scorer:
    """A reward as a scorer: the same numbers, without a gradient."""
    return RewardScorer(reward)
