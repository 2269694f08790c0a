"""Algorithm 1 on rewards that are written down: which candidate is kept, and when the search is over."""

import math

import pytest
import torch

from renege_ray.method.ascent import Ascent, AscentSettings
from renege_ray.method.search import Search

SETTINGS = AscentSettings(lr=0.1, steps=6, max_grad_norm=0.5, drift_penalty=1e-2)


def search(*rewards: float, steps: int = 6, patience: int = 3) -> Search:
    """A search that has been told these rewards, with an update in between, for as long as it was not over."""
    found = Search(torch.zeros(1, 2, 3), AscentSettings(lr=0.1, steps=steps), patience)
    for reward in rewards:
        assert not found.over
        if found.rewards:
            found.ascend(torch.ones(1, 2, 3))
        found.record(reward)
    return found


@pytest.mark.parametrize(
    ("rewards", "best", "over"),
    [
        ([1.0], 0, False),
        ([1.0, 0.0, 0.0, 0.0], 0, True),  # patience, from the start
        ([1.0, 2.0, 1.5, 1.9, 2.0], 1, True),  # an equal reward is no rise
        ([1.0, 2.0, 1.5, 1.9, 2.1], 4, False),  # a rise in time
        ([1.0, math.nan, 2.0], 2, False),  # a candidate that cannot be measured is no rise
        ([1.0, math.inf, 2.0], 2, False),  # nor is one whose reward has overflowed
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 6, True),  # N updates make N + 1 candidates
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 1.0], 5, True),
    ],
)
def test_the_best_candidate_is_kept_and_patience_counts(rewards: list[float], best: int, over: bool) -> None:
    found = search(*rewards)
    assert (found.best_step, found.over, found.steps) == (best, over, len(rewards) - 1)
    assert found.rewards[found.best_step] == max(filter(math.isfinite, rewards))


def test_candidates_are_those_of_the_ascent_rounded_to_the_storage_type() -> None:
    initial = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    found, ascent = Search(initial, SETTINGS, patience=10), Ascent(initial.half().float(), SETTINGS)
    for k in range(5):
        assert torch.equal(found.candidate, ascent.embedding.half().float())
        assert found.record(float(k))
        assert torch.equal(found.best, found.candidate) and found.best_step == k
        gradient = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(k + 1))
        found.ascend(gradient)
        ascent.update(gradient)


def test_failures_are_told() -> None:
    with pytest.raises(FloatingPointError, match="initial embedding is nan"):
        search(math.nan)
    found = search(1.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        found.ascend(torch.full((1, 2, 3), torch.inf))
