"""What judges images: a `Reward` is differentiable and can be trained against, a `Scorer` only measures.

Both take images (B, 3, height, width) in [0, 1] and B prompts in words, and judge each image by itself:
`reward(images, prompts)[i] == reward(images[i:i+1], prompts[i:i+1])[0]`.

`RewardModel` is what all rewards of this package are: a frozen network that says where it comes from.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.rewards.catalogue import REWARDS, RewardFacts, beside
from renege_ray.rewards.checkpoints import sha256
from renege_ray.rewards.video.frames import is_video, over_frames

TEXTS_KEPT = 16_384
"""How many prompts a reward keeps the text features (or tokens) of: more than the paper trains on; at most 64 MiB."""

UNRANKED = frozenset((*ImageStatistics.names, *(name for facts in REWARDS.values() for name in facts.beside)))
"""Scores without better or worse: they are shown, and no method wins by them."""


class Reward(Protocol):
    """A frozen, differentiable judgement; higher is better."""

    @property
    def name(self) -> str:
        """What all results call it, also the name of its metric."""
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


@runtime_checkable
class ReadsPrompts(Protocol):
    """A reward or scorer that has a text tower, which can read prompts before there are images of them."""

    def prepare(self, prompts: Iterable[str], say: Callable[[str], None] = lambda line: None) -> None:
        """Read prompts that will be asked for, in one go: the tower is on the accelerator for so long. Where that takes
        long, `say` is told how far it is.
        """
        ...


def prepare_texts(
    judges: Iterable[object], prompts: Iterable[str], say: Callable[[str], None] = lambda line: None
) -> None:
    """Let all rewards and scorers that can read prompts that they will be asked for."""
    prompts = list(dict.fromkeys(prompts))
    for judge in judges:
        if isinstance(judge, ReadsPrompts):
            judge.prepare(prompts, say)


class VideoScorer(ABC):
    """A `Scorer` of whole videos (B, 3, F, height, width); still images have NaN."""

    names: tuple[str, ...]

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,)}."""


class RewardModel(nn.Module, ABC):
    """A `Reward` that is a frozen network. A subclass computes `judge`.

    Attributes:
        name: what all results call it; names the version where there are several.
        version: of the checkpoint.
        checkpoint: the file of its weights.
        usual_range: most scores of ordinary generated images lie in it.
    """

    def __init__(self, facts: RewardFacts, checkpoint: Path) -> None:
        super().__init__()
        self.name = facts.name
        self.version = facts.version
        self.usual_range = facts.usual_range
        self.checkpoint = checkpoint
        self._truncated: set[str] = set()

    def place(self, device: torch.device) -> None:
        """Move what images need to a device."""
        self.to(device)

    @abstractmethod
    def judge(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32, differentiable, of float32 images (B, 3, height, width) and B prompts; B is at least 1."""

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (B,) float32 of images (B, 3, height, width) in [0, 1], or of videos, differentiable in them.

        Raises:
            ValueError: images of another shape, or another number of prompts.
        """
        if is_video(images):
            return over_frames(self.forward, images, prompts)
        self.check(images, prompts)
        if not len(images):
            return images.float().sum(dim=(1, 2, 3))  # (0,), and still a function of the images
        return self.judge(images.float(), prompts)

    def check(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Raises ValueError where these are no images (B, 3, height, width) and B prompts."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:] or not images.is_floating_point():
            raise ValueError(
                f"{self.name}: images are {images.dtype} of shape {tuple(images.shape)}, not floating point of shape "
                "(B, 3, height, width); repeat the one channel of grey images three times"
            )
        if isinstance(prompts, str) or len(prompts) != len(images):
            raise ValueError(f"{self.name}: {len(images)} images need a list of as many prompts, got {prompts!r:.80}")

    def measure(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,)}: the rewards, and what `RewardFacts.beside` names, as one computation."""
        return {self.name: self(images, prompts)}

    def compile_towers(self) -> None:
        """Compile what looks at images, where that is large."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The rewards (B,) without a gradient."""
        with torch.no_grad():
            rewards: Tensor = self(images, prompts)
            return rewards

    @property
    def sha256(self) -> str:
        """Of the checkpoint, in hex; read from the disk when it is first asked for."""
        return sha256(self.checkpoint)

    @property
    def truncated_prompts(self) -> int:
        """How many different prompts were too long and have lost their ends so far."""
        return len(self._truncated)

    def note_truncated(self, prompt: str) -> None:
        """Count a prompt that was cut."""
        self._truncated.add(prompt)

    def describe(self) -> dict[str, Any]:
        """What a run's record says of a reward, as plain values."""
        return {
            "name": self.name,
            "version": self.version,
            "checkpoint": self.checkpoint.name,
            "sha256": self.sha256,
            "usual_range": list(self.usual_range),
            "truncated_prompts": self.truncated_prompts,
        }


def measure(reward: Reward, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """A reward (B,) by its name, and what it measures beside it."""
    if isinstance(reward, RewardModel):
        return reward.measure(images, prompts)
    return {reward.name: reward(images, prompts)}


class RewardScorer:
    """A reward as a scorer: of its name, and of what it measures beside it."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.names: tuple[str, ...] = (reward.name, *beside(reward.name))

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """{name: (B,)}, without a gradient."""
        with torch.no_grad():
            return measure(self.reward, images, prompts)

    def prepare(self, prompts: Iterable[str], say: Callable[[str], None] = lambda line: None) -> None:
        """See `ReadsPrompts`."""
        prepare_texts([self.reward], prompts, say)


def as_scorer(reward: Reward) -> Scorer:
    """A reward as a scorer: the same numbers, without a gradient."""
    return RewardScorer(reward)
