"""How sure a paired comparison is: bootstrap intervals over prompts.

Notation: P pairs (a prompt and a seed), K columns (a method's scores, a difference between two methods, wins), G
prompts. The seeds of one prompt are not independent of each other, so whole prompts are drawn, with all their pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
Z_95 = 1.96  # half the width of a normal 95 % interval, in standard errors
RESAMPLES = 10_000
# Of five prompts that all agree nothing follows at 5 % (two-sided sign test: 2 / 2^5 = 0.06), of six it does.
FEWEST_PROMPTS = 6
# Two scores that differ by less than this say nothing. An embedding is stored in float16, so it is off by up to 2^-11
# of itself. Of null against null as stored, the embedded model's scores differ by up to 3 * 10^-4 of their spread over
# the pairs, and under guidance of 7.5 by 5 * 10^-4 (99 of 100 by less than 4 * 10^-5): half of float16's spacing.
QUARTILES = 1.349  # how far they are apart in a normal distribution, in standard deviations
STORED = 2.0**-10  # of a score's spread
COMPUTED = 2.0**-20  # of its size: float32's spacing, times what a sum of some terms makes of it
_CHUNK = 500  # resamples held in memory at once

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Intervals:
    """Means of K columns with their 95 % intervals; all (K,)."""

    mean: Array
    low: Array
    """NaN where no interval is claimed, as `high`."""
    high: Array
    pairs: NDArray[np.int64]
    """How many the mean rests on, of how many `prompts`."""
    prompts: NDArray[np.int64]

    def __getitem__(self, columns: slice) -> "Intervals":
        """Those of some columns."""
        means = self.mean[columns], self.low[columns], self.high[columns]
        return Intervals(*means, self.pairs[columns], self.prompts[columns])

    def without_claim(self) -> "Intervals":
        """The means alone."""
        nothing = np.full_like(self.mean, np.nan)
        return Intervals(self.mean, nothing, nothing.copy(), self.pairs, self.prompts)


def bootstrap_means(
    values: ArrayLike, prompts: Sequence[object], *, seed: int = 0, resamples: int = RESAMPLES
) -> Intervals:
    """Means of the columns over the pairs with percentile intervals from resampled prompts.

    All columns see the same resamples. NaN stands for a pair without a value and is left out of its column. No interval
    is claimed of fewer than `FEWEST_PROMPTS` prompts. The order of the rows does not matter.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 (the unit that is drawn) and 13
    (percentiles).

    Args:
        values: (P, K).
        prompts: (P,), which prompt a pair is of; anything that can be sorted.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(prompts):
        raise ValueError(f"bootstrap_means: values {values.shape} do not fit {len(prompts)} pairs")
    sums, counts = _by_prompt(values, prompts)
    different, place = np.unique(counts, axis=1, return_inverse=True)  # most columns lack nothing
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        weights = _resampled(len(sums), resamples, seed)
        drawn = np.concatenate([(w @ sums) / (w @ different)[:, place] for w in weights])
    used = (counts > 0).sum(axis=0)
    bounds = np.full((2, values.shape[1]), np.nan)
    claimed = used >= FEWEST_PROMPTS
    if claimed.any():
        tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        bounds[:, claimed] = np.nanquantile(drawn[:, claimed], tails, axis=0)
    return Intervals(mean, bounds[0], bounds[1], counts.sum(axis=0).astype(np.int64), used.astype(np.int64))


def as_rates(found: Intervals) -> Intervals:
    """The intervals of columns of shares, values in [0, 1].

    Where all pairs agree, so does every resample, and a bootstrap would be certain. There the limit is that of Clopper
    and Pearson (1934) for G trials out of G, (alpha / 2)^(1 / G).
    """
    claimed = ~np.isnan(found.low)
    limit = ((1 - LEVEL) / 2) ** (1 / np.maximum(found.prompts, 1))
    low = np.where(claimed & (found.mean == 1), limit, found.low)
    high = np.where(claimed & (found.mean == 0), 1 - limit, found.high)
    return Intervals(found.mean, low, high, found.pairs, found.prompts)


def least_difference(*methods: ArrayLike) -> float:
    """By how much two scores have to differ to say anything: what is not more than this is a tie.

    Args:
        methods: a score of each method over the pairs, (P,) each, NaN where it is missing. Its spread is the normal
            one with their quartiles, and of the methods that of the middle one: neither a few pairs, nor a method that
            has gone astray or always gets the same, decide for the others.
    """
    columns = [column[~np.isnan(column)] for column in (np.asarray(method, dtype=np.float64) for method in methods)]
    columns = [column for column in columns if len(column)]
    if not columns:
        return 0.0
    quartiles = np.array([np.quantile(column, [0.25, 0.75]) for column in columns])
    spread = float(np.median(quartiles[:, 1] - quartiles[:, 0])) / QUARTILES
    size = float(np.median([np.median(np.abs(column)) for column in columns]))
    return max(STORED * spread, COMPUTED * size)


def wins(first: ArrayLike, second: ArrayLike, least: float = 0.0) -> Array:
    """1 where the first is larger, 0 where the second is, 1/2 where they tie, NaN where either is missing.

    `least`: see `least_difference`.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    tied = np.abs(difference) <= least
    return np.where(np.isnan(difference), np.nan, (np.sign(np.where(tied, 0.0, difference)) + 1) / 2)


def without_pair_effects(values: ArrayLike) -> Array:
    """The scores of M methods (P, M) freed of what makes a pair easy or hard for all methods alike.

    Cousineau (2005) subtracts the pair's mean and adds the grand mean; Morey (2008, Tutorials in Quantitative Methods
    for Psychology 4, 61-64) scales by sqrt(M / (M - 1)) about each method's mean, since the subtraction has taken that
    share of the variance away. Intervals of these columns are for comparing the methods with each other; they say
    nothing of other prompts' level. Pairs that lack a method are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    methods = values.shape[1]
    complete = ~np.isnan(values).any(axis=1)
    freed = np.full_like(values, np.nan)
    if methods < 2 or not complete.any():
        return freed
    kept = values[complete]
    mean = kept.mean(axis=0)
    centred = kept - kept.mean(axis=1, keepdims=True) + kept.mean() - mean
    freed[complete] = mean + np.sqrt(methods / (methods - 1)) * centred
    return freed


def _by_prompt(values: Array, prompts: Sequence[object]) -> tuple[Array, Array]:
    """Sums and counts of what is there, (G, K) each, prompts in sorted order."""
    names, index = np.unique(np.asarray(prompts), return_inverse=True)
    sums, counts = np.zeros((len(names), values.shape[1])), np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, np.where(np.isnan(values), 0.0, values))
    np.add.at(counts, index, ~np.isnan(values))
    return sums, counts


def _resampled(groups: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of G groups was drawn in each resample, (<= _CHUNK, G) at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = generator.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)
