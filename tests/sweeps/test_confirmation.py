"""The verdict on the best setting against the defaults, compared with an independent computation."""

import math

import pytest
from scipy import stats

from renege_ray.sweeps.confirmation import SeedComparison

BEST, DEFAULT = (3.31, 3.42, 3.38, 3.29), (3.20, 3.35, 3.25, 3.24)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    comparison = SeedComparison("test/global/reward/mean", BEST, DEFAULT)
    expected = stats.ttest_rel(BEST, DEFAULT).confidence_interval(0.95)
    assert comparison.interval() == pytest.approx((expected.low, expected.high))
    assert comparison.interval()[0] > 0 and "beats the preset's defaults" in comparison.verdict()


@pytest.mark.parametrize(
    ("best", "default", "maximise", "words"),
    [
        (BEST, DEFAULT, False, "found luck"),
        (DEFAULT, BEST, True, "found luck"),
        (DEFAULT, BEST, False, "beats"),
        ((3.3, 3.1, 3.2), (3.2, 3.2, 3.2), True, "may be luck"),
        ((3.3,), (3.2,), True, "may be luck"),
        (tuple(x + 1e-5 for x in DEFAULT), DEFAULT, True, "may be luck"),  # the same but for rounding
        (tuple(x - 1e-5 for x in DEFAULT), DEFAULT, True, "may be luck"),
    ],
)
def test_luck_is_called_luck(best: tuple[float], default: tuple[float], maximise: bool, words: str) -> None:
    assert words in SeedComparison("test/global/reward/mean", best, default, maximise).verdict()


def test_one_seed_says_nothing() -> None:
    low, high = SeedComparison("x", (1.0,), (0.0,)).interval()
    assert math.isinf(low) and math.isinf(high)
