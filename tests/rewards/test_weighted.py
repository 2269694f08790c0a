from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.rewards.base import as_scorer
from renege_ray.rewards.catalogue import check_names
from renege_ray.rewards.load import load_rewards, load_scorers
from renege_ray.rewards.weighted import WeightedReward


@dataclass(frozen=True)
class Brightness:
    """The mean of one channel, times the length of the prompt."""

    name: str
    channel: int

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return images[:, self.channel].mean(dim=(1, 2)) * lengths


RED, BLUE = Brightness("red", 0), Brightness("blue", 2)
PROMPTS = ("a", "bb", "ccc")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_sum_and_its_parts(images: Tensor) -> None:
    reward = WeightedReward({RED: 1.0, BLUE: -0.5})
    parts = reward.parts(images, PROMPTS)
    assert list(parts) == list(reward.names) == ["red", "blue"]
    assert reward.rewards == (RED, BLUE) and reward.name == "red + -0.5 blue"
    assert torch.equal(parts["blue"], BLUE(images, PROMPTS))
    total = reward(images, PROMPTS)
    torch.testing.assert_close(total, RED(images, PROMPTS) - 0.5 * BLUE(images, PROMPTS))
    assert torch.equal(reward.combine(parts), total) and total.shape == (3,) and total.dtype == torch.float32
    assert WeightedReward({RED: 1}).name == "red"


def test_the_gradient_is_the_weighted_sum(images: Tensor) -> None:
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(WeightedReward({RED: 2.0, BLUE: -0.5})(images, PROMPTS).sum(), images)
    for channel, weight in enumerate((2.0, 0.0, -0.5)):
        for i, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(gradient[i, channel], torch.full((8, 8), weight * len(prompt) / 64))


def test_each_image_is_judged_by_itself(images: Tensor) -> None:
    reward = WeightedReward({RED: 2.0, BLUE: 1.0})
    together = reward(images, PROMPTS)
    for i in range(3):
        torch.testing.assert_close(reward(images[i : i + 1], PROMPTS[i : i + 1])[0], together[i])


def test_as_scorer_gives_the_same_numbers_without_a_gradient(images: Tensor) -> None:
    scorer = as_scorer(RED)
    scores = scorer.score(images.requires_grad_(), PROMPTS)
    assert scorer.names == ("red",) == tuple(scores)
    assert not scores["red"].requires_grad and torch.equal(scores["red"], RED(images, PROMPTS).detach())
    weighted = as_scorer(WeightedReward({RED: 1.0, BLUE: 1.0}))
    assert weighted.names == ("red + blue",)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "empty"),
        ({RED: 1.0, Brightness("red", 1): 1.0}, "twice"),
        ({RED: float("nan")}, "finite"),
        ({RED: 0.0, BLUE: 0.0}, "zero"),
    ],
)
def test_weights_that_mean_nothing(weights: dict[Brightness, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WeightedReward(weights)


def test_unknown_names_get_a_suggestion() -> None:
    for load in (load_rewards, load_scorers):
        with pytest.raises(UserError, match="'toy_heldout' is not known: did you mean 'toy_held_out'"):
            load(["toy_heldout"])
        with pytest.raises(UserError, match="'zzz' is not known"):
            load(["zzz"])
    with pytest.raises(UserError, match="'judge' is not known"):
        load_rewards(["judge"])
    check_names(["toy", "judge"], ("toy", "judge"), "anything")
