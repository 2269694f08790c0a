"""Methods compared on the same prompts and seeds: means, differences and win rates by style, with intervals.

The table that it is made from has a row for each pair (a prompt and a seed) and method: see `COLUMNS`. A score that is
missing, or whose image is black, NaN or failed, is left out of every figure that needs it, and counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, permutations

import numpy as np
import pandas as pd

from renege_ray.output.statistics import (
    RESAMPLES,
    Array,
    as_rates,
    bootstrap_means,
    least_difference,
    wins,
    without_pair_effects,
)
from renege_ray.rewards.base import UNRANKED

ALL = "all"  # the style that stands for every pair
OK, BLACK, NAN, FAILED = "ok", "black", "nan", "failed"
COLUMNS = ("prompt_id", "prompt", "style", "seed", "pair_index", "method", "status", "marks")
_PAIR = ["prompt_id", "seed"]


def score_column(score: str) -> str:
    """The column of a score in the table."""
    return f"score/{score}"


@dataclass(frozen=True)
class Step:
    """How two methods compare: those that stand next to each other in the order of the methods, say."""

    lower: str
    higher: str
    difference: float
    """The mean of paired differences d, higher minus lower."""
    low: float
    """Of its interval, to `high`."""
    high: float
    least: float
    """What is not more than this is no difference, see `renege_ray.output.statistics.least_difference`."""

    @property
    def verdict(self) -> int | None:
        """1 where the second is surely above the first, -1 below, 0 where none can be told, None without interval."""
        return verdict(self.low, self.high, self.least)

    @property
    def separated(self) -> bool:
        """Whether the second is above the first, and their intervals, freed of what the two share by pair, do not
        overlap, which asks for more than that the difference's excludes zero.

        Of two methods `without_pair_effects` leaves mean +- (d - mean d) / sqrt(2), so the lower end of one interval is
        above the upper end of the other where mean d > sqrt(2) (mean d - low). Freed of what all methods share, the
        two would be as uncertain as the other methods are variable.
        """
        return self.verdict == 1 and self.difference > math.sqrt(2) * (self.difference - self.low)


def verdict(low: float, high: float, least: float) -> int | None:
    """1 where a difference with this interval is surely above zero, -1 below, 0 where neither can be told; None where
    no interval is claimed. What is not more than `least` is as good as zero.
    """
    return None if math.isnan(low) or math.isnan(high) else int(low > least) - int(high < -least)


@dataclass(frozen=True)
class Comparison:
    """What a table says. P pairs, M methods."""

    methods: tuple[str, ...]
    scores: tuple[str, ...]
    styles: tuple[str, ...]
    pairs: pd.DataFrame
    """(P rows) prompt_id, seed, prompt, style, pair_index, in the order of prompt_id and pair_index."""
    values: dict[str, Array]
    """By score (P, M) float64, NaN where there is none."""
    least: dict[str, float]
    """By score: what two of its values have to differ by; else they tie."""
    counts: pd.DataFrame
    """A row a method: images, ok, black, nan, failed, marked."""
    means: pd.DataFrame
    """A row for each score, style and method: mean; low, high: its interval over prompts; paired_low, paired_high:
    freed of pair effects, for comparing methods; pairs, prompts: what it rests on.
    """
    comparisons: pd.DataFrame
    """A row for each score, style and two methods: difference (method minus other) and win_rate of method over other
    (ties half), each with its interval _low, _high; pairs, prompts; least_difference: what is not more is a tie. Image
    statistics have no better or worse, hence no win rate.
    """

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        scores: Sequence[str],
        methods: Sequence[str],
        *,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> "Comparison":
        """Compare the methods, in this order, by the scores.

        With one seed for everything, or fewer prompts than intervals need, no interval is claimed.

        Raises:
            ValueError: a column, or every row of a method, is missing; a pair has two rows of a method.
        """
        _check(table, scores, methods)
        rows = table[table["method"].isin(methods)]
        pairs = (
            rows.drop_duplicates(_PAIR)[[*_PAIR, "prompt", "style", "pair_index"]]
            .sort_values(["prompt_id", "pair_index", "seed"])
            .reset_index(drop=True)
        )
        place = pd.MultiIndex.from_frame(pairs[_PAIR])
        values = {score: np.full((len(pairs), len(methods)), np.nan) for score in scores}
        for column, method in enumerate(methods):
            mine = rows[rows["method"] == method]
            index = place.get_indexer(pd.MultiIndex.from_frame(mine[_PAIR]))
            good = (mine["status"] == OK).to_numpy()
            for score in scores:
                found = mine[score_column(score)].to_numpy(dtype=float, na_value=np.nan)
                values[score][index, column] = np.where(good & np.isfinite(found), found, np.nan)
        least = {score: least_difference(*found.T) for score, found in values.items()}
        styles = tuple(sorted({style for style in pairs["style"] if style}))
        subsets = {ALL: np.ones(len(pairs), dtype=bool)}
        if len(styles) > 1:
            subsets |= {style: (pairs["style"] == style).to_numpy() for style in styles}
        estimated = [
            _estimate(pairs[subset], {s: v[subset] for s, v in values.items()}, least, methods, style, seed, resamples)
            for style, subset in subsets.items()
        ]
        return cls(
            tuple(methods),
            tuple(scores),
            tuple(name for name in subsets if name != ALL),
            pairs,
            values,
            least,
            _counts(rows, methods),
            pd.concat([means for means, _ in estimated], ignore_index=True),
            pd.concat([comparisons for _, comparisons in estimated], ignore_index=True),
        )

    def mean(self, score: str, method: str, style: str = ALL) -> pd.Series:
        """The row of `means`."""
        return self._means_by_key.loc[(score, style, method)]

    def between(self, score: str, method: str, other: str, style: str = ALL) -> pd.Series:
        """The row of `comparisons`."""
        return self._comparisons_by_key.loc[(score, style, method, other)]

    @cached_property
    def _means_by_key(self) -> pd.DataFrame:
        return self.means.set_index(["score", "style", "method"])

    @cached_property
    def _comparisons_by_key(self) -> pd.DataFrame:
        return self.comparisons.set_index(["score", "style", "method", "other"])

    def steps(self, score: str, style: str = ALL) -> list[Step]:
        """Each method against the one before it: null < handwritten < global < prompt, where they are named so."""
        return [self.step(score, lower, higher, style) for lower, higher in pairwise(self.methods)]

    def step(self, score: str, lower: str, higher: str, style: str = ALL) -> Step:
        """How a method compares with another one."""
        row = self.between(score, higher, lower, style)
        names = ("difference", "difference_low", "difference_high", "least_difference")
        return Step(lower, higher, *(float(row[name]) for name in names))

    def splits(self, count: int = 10) -> pd.DataFrame:
        """HPSv2's own protocol: the prompts of each style in `count` equal groups; mean and standard deviation (that of
        numpy, without Bessel's correction) of the groups' means, as its `evaluate_benchmark` computes them.

        There the groups are consecutive prompts of its files; here, of the hashed prompt ids, which is as arbitrary.
        Styles of fewer than `count` prompts are left out.
        """
        rows = []
        for style in self.styles or (ALL,):
            subset = np.ones(len(self.pairs), dtype=bool) if style == ALL else (self.pairs["style"] == style).to_numpy()
            for score in self.scores:
                per_prompt = pd.DataFrame(self.values[score][subset]).groupby(
                    self.pairs["prompt_id"].to_numpy()[subset], sort=True
                )
                scores_of_prompts = per_prompt.mean().to_numpy()
                if len(scores_of_prompts) < count:
                    continue
                groups = [pd.DataFrame(part).mean().to_numpy() for part in np.array_split(scores_of_prompts, count)]
                mean, spread = np.mean(groups, axis=0), np.std(groups, axis=0)
                for column, method in enumerate(self.methods):
                    rows.append((score, style, method, mean[column], spread[column], len(scores_of_prompts), count))
        return pd.DataFrame(rows, columns=["score", "style", "method", "mean", "spread", "prompts", "splits"])

    def metrics(self) -> dict[str, float]:
        """The figures over all pairs by the names of `summary.json`; win rates against the methods named before."""
        place = {method: index for index, method in enumerate(self.methods)}
        figures: dict[str, float] = {}
        for row in self.means[self.means["style"] == ALL].itertuples():
            figures[f"eval/{row.method}/{row.score}/mean"] = row.mean
        for row in self.comparisons[self.comparisons["style"] == ALL].itertuples():
            if place[row.method] > place[row.other] and row.score not in UNRANKED:
                figures[f"eval/{row.method}/win_rate_vs_{row.other}/{row.score}"] = row.win_rate
        for row in self.counts.itertuples():
            for status in (BLACK, NAN, FAILED, "marked"):
                figures[f"eval/{row.method}/{status}"] = float(getattr(row, status))
        return figures


def _estimate(
    pairs: pd.DataFrame,
    values: dict[str, Array],
    least: dict[str, float],
    methods: Sequence[str],
    style: str,
    seed: int,
    resamples: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `means` and of `comparisons` for the pairs of one style. All columns see the same resamples."""
    two = list(permutations(range(len(methods)), 2))
    first = [found[:, i] for found in values.values() for i, _ in two]
    second = [found[:, j] for found in values.values() for _, j in two]
    won = [wins(found[:, i], found[:, j], least[score]) for score, found in values.items() for i, j in two]
    parts = [
        np.concatenate(list(values.values()), axis=1),
        np.concatenate([without_pair_effects(found) for found in values.values()], axis=1),
        *([np.stack(first, axis=1) - np.stack(second, axis=1), np.stack(won, axis=1)] if two else []),
    ]
    found = bootstrap_means(np.concatenate(parts, axis=1), list(pairs["prompt_id"]), seed=seed, resamples=resamples)
    if pairs["seed"].nunique() < 2:  # what holds for one noise says nothing of another
        found = found.without_claim()
    ends = np.cumsum([0, *(part.shape[1] for part in parts)])
    plain, paired, *compared = (found[start:end] for start, end in pairwise(ends))
    difference, rate = compared or (found[:0], found[:0])
    means = pd.DataFrame([(s, style, m) for s in values for m in methods], columns=["score", "style", "method"])
    means["mean"], means["low"], means["high"] = plain.mean, plain.low, plain.high
    about = plain.mean - paired.mean  # pairs that lack a method have no part in the width, but in the mean
    means["paired_low"], means["paired_high"] = paired.low + about, paired.high + about
    means["pairs"], means["prompts"] = plain.pairs, plain.prompts
    names = [(s, style, methods[i], methods[j]) for s in values for i, j in two]
    comparisons = pd.DataFrame(names, columns=["score", "style", "method", "other"])
    ranked = ~comparisons["score"].isin(UNRANKED)
    for name, interval in (("difference", difference), ("win_rate", as_rates(rate))):
        for end, numbers in (("", interval.mean), ("_low", interval.low), ("_high", interval.high)):
            comparisons[f"{name}{end}"] = pd.Series(numbers).where(ranked | (name == "difference"))
    comparisons["pairs"], comparisons["prompts"] = difference.pairs, difference.prompts
    comparisons["least_difference"] = comparisons["score"].map(least)
    return means, comparisons


def _counts(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    found = []
    for method in methods:
        mine = rows[rows["method"] == method]
        statuses = [int((mine["status"] == status).sum()) for status in (OK, BLACK, NAN, FAILED)]
        marked = int((mine["marks"].fillna("") != "").sum())
        found.append((method, len(mine), *statuses, marked))
    return pd.DataFrame(found, columns=["method", "images", OK, BLACK, NAN, FAILED, "marked"])


def _check(table: pd.DataFrame, scores: Sequence[str], methods: Sequence[str]) -> None:
    missing = [name for name in [*COLUMNS, *map(score_column, scores)] if name not in table.columns]
    if missing:
        raise ValueError(f"Comparison: the table has no column {', '.join(map(repr, missing))}")
    absent = [method for method in methods if not (table["method"] == method).any()]
    if absent or not methods:
        raise ValueError(f"Comparison: the table has no row of the methods {absent or list(methods)}")
    twice = table[table["method"].isin(methods)].duplicated([*_PAIR, "method"])
    if twice.any():
        row = table[table["method"].isin(methods)][twice].iloc[0]
        raise ValueError(
            f"Comparison: {row['method']} has two rows of prompt_id {row['prompt_id']!r} and seed {row['seed']}"
        )
