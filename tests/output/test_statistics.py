"""Intervals against scipy, closed forms and simulation; what is claimed of few prompts."""

import math

import numpy as np
import pytest
import scipy.stats

from renege_ray.output.statistics import (
    FEWEST_PROMPTS,
    as_rates,
    bootstrap_means,
    least_difference,
    wins,
    without_pair_effects,
)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(1)


def test_one_pair_a_prompt_agrees_with_scipy(generator: np.random.Generator) -> None:
    values = generator.gamma(2.0, size=(150, 2))
    found = bootstrap_means(values, list(range(150)))
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-12)
    for column in range(2):
        expected = scipy.stats.bootstrap(
            (values[:, column],), np.mean, method="percentile", n_resamples=20_000, rng=generator
        )
        width = expected.confidence_interval.high - expected.confidence_interval.low
        bounds = [found.low[column], found.high[column]]
        np.testing.assert_allclose(bounds, expected.confidence_interval, atol=0.03 * width)
    assert found.prompts.tolist() == found.pairs.tolist() == [150, 150]


def test_seeds_of_a_prompt_are_drawn_together(generator: np.random.Generator) -> None:
    """Ten pairs that are copies of each other say as much as one; an unequal number of seeds is a ratio of sums."""
    values = generator.normal(size=(60, 1))
    prompts = [f"prompt {i:02d}" for i in range(60)]
    once = bootstrap_means(values, prompts)
    copied = bootstrap_means(np.repeat(values, 10, axis=0), np.repeat(prompts, 10).tolist())
    np.testing.assert_allclose([copied.low, copied.high], [once.low, once.high], rtol=1e-9)
    assert (copied.pairs[0], copied.prompts[0]) == (600, 60)

    counts = generator.integers(1, 5, size=60)
    unequal = bootstrap_means(np.repeat(values, counts, axis=0), np.repeat(prompts, counts).tolist())
    sums, counts = values[:, 0] * counts, counts.astype(float)
    drawn = generator.integers(60, size=(20_000, 60))
    brute = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    np.testing.assert_allclose([unequal.low[0], unequal.high[0]], brute, atol=0.03 * np.ptp(brute))


def test_the_order_of_rows_and_missing_values(generator: np.random.Generator) -> None:
    values = generator.normal(size=(80, 2))
    prompts = np.arange(80) // 2
    values[::7, 1] = math.nan
    found = bootstrap_means(values, prompts.tolist(), seed=3)
    order = generator.permutation(80)
    again = bootstrap_means(values[order], prompts[order].tolist(), seed=3)
    np.testing.assert_allclose([again.low, again.high], [found.low, found.high], rtol=1e-12)
    there = ~np.isnan(values[:, 1])
    assert found.mean[1] == pytest.approx(values[there, 1].mean())
    assert found.pairs.tolist() == [80, there.sum()]
    other_seed = bootstrap_means(values, prompts.tolist(), seed=4)
    assert other_seed.low[0] != found.low[0]


def test_coverage_is_nominal(generator: np.random.Generator) -> None:
    """Of 400 samples of 40 prompts with 3 seeds each, 95 % of the intervals hold the true mean; naively, far fewer."""
    prompt_effect = generator.normal(size=(40, 400))
    values = np.repeat(prompt_effect, 3, axis=0) + 0.3 * generator.normal(size=(120, 400))
    clustered = bootstrap_means(values, np.repeat(np.arange(40), 3).tolist(), resamples=1000)
    naive = bootstrap_means(values, list(range(120)), resamples=1000)
    assert 0.91 < np.mean((clustered.low < 0) & (clustered.high > 0)) < 0.98
    assert np.mean((naive.low < 0) & (naive.high > 0)) < 0.85


def test_few_prompts_claim_nothing() -> None:
    for prompts in ([0] * 50, [0, 1, 2, 3, 4] * 10):
        found = bootstrap_means(np.arange(50.0)[:, None], prompts)
        assert found.mean[0] == 24.5
        assert np.isnan(found.low[0]) and np.isnan(found.high[0])
    enough = list(range(FEWEST_PROMPTS)) * 10
    assert bootstrap_means(np.arange(60.0)[:, None], enough).low[0] < 29.5
    nothing = bootstrap_means(np.full((50, 1), math.nan), list(range(50)))
    assert np.isnan(nothing.mean[0]) and np.isnan(nothing.low[0]) and nothing.pairs[0] == 0


def test_wins_and_their_rates(generator: np.random.Generator) -> None:
    assert wins([2, 1, 1, math.nan], [1, 2, 1, 0]).tolist()[:3] == [1.0, 0.0, 0.5]
    assert np.isnan(wins([2, 1, 1, math.nan], [1, 2, 1, 0])[3])
    assert wins([2, 1, 1.2, math.nan], [1, 2, 1, 0], 0.3).tolist()[:3] == [1.0, 0.0, 0.5]

    share = np.zeros((400, 1))
    share[:240] = 1.0
    found = as_rates(bootstrap_means(share, list(range(400))))
    expected = scipy.stats.binomtest(240, 400).proportion_ci(method="wilson")
    np.testing.assert_allclose([found.low[0], found.high[0]], expected, atol=0.005)

    for unanimous in (0.0, 1.0):
        found = as_rates(bootstrap_means(np.full((20, 1), unanimous), list(range(20))))
        expected = scipy.stats.binomtest(int(20 * unanimous), 20).proportion_ci(method="exact")
        np.testing.assert_allclose([found.low[0], found.high[0]], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_what_is_less_than_an_embedding_is_stored_with_is_a_tie(generator: np.random.Generator, size: float) -> None:
    """Whatever the score's scale and zero; a gain of a hundredth of its spread is none of this."""
    null = size * generator.normal(size=200) + 3 * size
    rounded = null + 3e-4 * size * generator.uniform(-1, 1, size=200)
    gain, wild = null + 0.01 * size, 1000 * size * generator.normal(size=200)
    least = least_difference(null, rounded, gain, wild, np.full(200, size))
    assert set(wins(rounded, null, least)) == {0.5}
    assert set(wins(gain, null, least)) == {1.0}
    assert set(wins(rounded, gain, least)) == {0.0}


def test_float32s_own_rounding_of_a_constant_score_is_a_tie() -> None:
    constant, rounded = np.full(5, 21.3), np.full(5, float(np.float32(21.3)))
    least = least_difference(constant, rounded)
    assert set(wins(constant, rounded, least)) == {0.5} and set(wins(constant + 0.001, rounded, least)) == {1.0}
    assert least_difference([math.nan], []) == least_difference() == 0.0
    assert set(wins([2.0], [1.0], least_difference([2.0], [1.0]))) == {1.0}


def test_pair_effects_are_removed(generator: np.random.Generator) -> None:
    """Against the definition pair by pair; and what is left does not know how hard a pair was."""
    values = generator.normal(size=(30, 3)) + np.array([0.0, 0.5, 1.0])
    freed = without_pair_effects(values)
    for i, j in ((0, 0), (7, 1), (29, 2)):
        normalised = values[i, j] - values[i].mean() + values.mean()
        expected = values[:, j].mean() + math.sqrt(3 / 2) * (normalised - values[:, j].mean())
        assert freed[i, j] == pytest.approx(expected)
    np.testing.assert_allclose(without_pair_effects(values + 9 * generator.normal(size=(30, 1))).std(0), freed.std(0))
    # of two methods, the intervals are those of the difference over sqrt(2)
    two = without_pair_effects(values[:, :2])
    np.testing.assert_allclose(two.std(axis=0), np.std(values[:, 1] - values[:, 0]) / math.sqrt(2))
    values[4, 1] = math.nan
    assert np.isnan(without_pair_effects(values)[4]).all() and not np.isnan(without_pair_effects(values)[5]).any()
    assert np.isnan(without_pair_effects(values[:, :1])).all()
