"""Two settings, trained on the same seeds: is one better, or was it luck?"""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats

from renege_ray.output.statistics import least_difference

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedComparison:
    """The best setting against the preset's own, trained on the same fresh seeds and judged on held-out prompts."""

    metric: str
    best: tuple[float, ...]
    """The first objective, a number for each seed, as `default`."""
    default: tuple[float, ...]
    maximise: bool = True
    """Whether more is better."""

    def differences(self) -> list[float]:
        """Best minus default, a number for each seed; the same seed has the same prompts and noise under both."""
        return [best - default for best, default in zip(self.best, self.default, strict=True)]

    def interval(self) -> tuple[float, float]:
        """The mean difference's 95 % confidence interval: Student's t over the seeds, paired; endless for one seed."""
        differences = self.differences()
        if len(differences) < 2:
            return -math.inf, math.inf
        spread = stdev(differences) / math.sqrt(len(differences))
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
        mean = fmean(differences)
        return mean - quantile * spread, mean + quantile * spread

    def verdict(self) -> str:
        """What the figures say, in a sentence."""
        low, high = self.interval()
        mean = fmean(self.differences())
        seeds = len(self.best)
        interval = (
            f"95 % interval {low:+.4f} to {high:+.4f}, paired t over {seeds} seeds"
            if seeds > 1
            else "on one seed, which says nothing of chance"
        )
        figures = f"{mean:+.4f} on {self.metric} ({interval})"
        least = least_difference(self.best, self.default)
        above, below = low > least, high < -least
        better, worse = (above, below) if self.maximise else (below, above)
        if better:
            return f"the best setting beats the preset's defaults on fresh seeds and held-out prompts: {figures}"
        if worse:
            return f"the best setting is worse than the preset's defaults; the sweep found luck: {figures}"
        return (
            f"no difference from the preset's defaults is shown on fresh seeds and held-out prompts, so the gain "
            f"on validation may be luck: {figures}"
        )

    def metrics(self) -> dict[str, float]:
        """The figures for summary.json."""
        low, high = self.interval()
        return {
            "confirm/best": fmean(self.best),
            "confirm/default": fmean(self.default),
            "confirm/difference": fmean(self.differences()),
            "confirm/interval_low": low,
            "confirm/interval_high": high,
            "confirm/seeds": float(len(self.best)),
        }
