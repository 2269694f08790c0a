"""What a table of tuned prompts says as a whole: means, gains with intervals, the table of results, figures."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from renege_ray.output.parquet_folder import ParquetFolder
from renege_ray.output.pictures import render, text_table
from renege_ray.output.statistics import Z_95, least_difference, wins
from renege_ray.sampling.run_rewards import REWARD
from renege_ray.tuning.scores import EVAL, METHODS, TUNE, column
from renege_ray.tuning.table import FAILED, TRUNCATED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"null": "null", "handwritten": "handwritten", "global": "global (start)", "prompt": "per prompt"}
_LISTED = 50
_REPEATED = ("category", "status", "error")  # texts of which many rows have the same
_DARK, _SHADE = "#1f4e79", "#8fb8de"


@dataclass(frozen=True)
class Gain:
    """The mean over the prompts of prompt minus global, with its standard error; NaN where there are too few."""

    mean: float
    standard_error: float
    improved: float

    @classmethod
    def of(cls, gains: np.ndarray, least: float = 0.0) -> "Gain":
        """From the gains of the prompts that have one; what is not more than `least` is no improvement."""
        gains = gains[~np.isnan(gains)]
        if not len(gains):
            return cls(math.nan, math.nan, math.nan)
        error = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan
        return cls(float(gains.mean()), error, float((gains > least).mean()))

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.mean - Z_95 * self.standard_error, self.mean + Z_95 * self.standard_error


class TuningReport:
    """The rows of a table, but for their embeddings and seeds.

    They stay as pyarrow's columns, in which a text is as long as it is and a repeated one is a number: a million rows
    are some hundred MB, and as objects would be several times as many.

    Attributes:
        scores: the names of what was measured.
    """

    def __init__(self, table: ParquetFolder) -> None:
        """Read the rows that there are."""
        found = [_for_report(rows) for rows in table.rows()]
        self._table = pa.concat_tables(found, promote_options="default").unify_dictionaries() if found else pa.table({})
        suffix = f"_null_{TUNE}"
        names = self._table.column_names
        self.scores = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, (rows,)."""
        if not self.rows:
            return np.array([])
        values: np.ndarray = self._table[name].to_numpy(zero_copy_only=False)
        return values

    def prompt(self, row: int) -> str:
        """The text of one row."""
        return str(self._table["prompt"][row].as_py())

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._table)

    @property
    def failed(self) -> int:
        """How many of them are failures."""
        return int((self["status"] == FAILED).sum()) if self.rows else 0

    def gains(self, score: str = REWARD, split: str = EVAL) -> np.ndarray:
        """Prompt minus global of each row, (rows,); NaN where there is none."""
        if not self.rows:
            return np.array([])
        difference: np.ndarray = self[column(score, "prompt", split)] - self[column(score, "global", split)]
        return difference

    def least(self, score: str = REWARD, split: str = EVAL) -> float:
        """What two means of a prompt have to differ by; else they tie."""
        return least_difference(*(self[column(score, method, split)] for method in METHODS)) if self.rows else 0.0

    def answer(self) -> str:
        """In a sentence, what tuning has brought."""
        if self.failed == self.rows:
            return "No prompt could be tuned."
        fresh = Gain.of(self.gains(), self.least())
        low, high = fresh.interval
        interval = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
        return (
            f"Tuning changes the reward of a prompt by {fresh.mean:+.3f}{interval} on fresh seeds, and improves "
            f"{fresh.improved:.0%} of {self.rows} prompts"
        )

    def metrics(self) -> dict[str, float]:
        """All figures: means and win rates on fresh seeds under `eval/`, means on the tune seeds under `tune/`."""
        figures: dict[str, float] = {}
        for split in (TUNE, EVAL):
            for method in METHODS:
                for score in self.scores:
                    figures[f"{split}/{method}/{score}/mean"] = _mean(self[column(score, method, split)])
            for score in self.scores:
                gain = Gain.of(self.gains(score, split), self.least(score, split))
                figures[f"{split}/gain/{score}/mean"] = gain.mean
                figures[f"{split}/gain/{score}/low"], figures[f"{split}/gain/{score}/high"] = gain.interval
                figures[f"{split}/gain/{score}/improved"] = gain.improved
        for other in METHODS[:-1]:
            for score in self.scores:
                prompt, others = self[column(score, "prompt", EVAL)], self[column(score, other, EVAL)]
                figures[f"eval/prompt/win_rate_vs_{other}/{score}"] = _mean(wins(prompt, others, self.least(score)))
        ok = self["status"] != FAILED
        return figures | {
            "tuning/rows": float(self.rows),
            "tuning/failed": float(self.failed),
            "tuning/truncated": float((self["status"] == TRUNCATED).sum()),
            "tuning/steps": _mean(self["steps"][ok]),
            "tuning/best_step": _mean(self["best_step"][ok]),
            "tuning/stopped_early": _mean(self["stopped_early"][ok]),
            "tuning/not_below_global": _mean(self.gains(split=TUNE)[ok] >= -self.least(split=TUNE)),
        }

    def text(self) -> str:
        """The table of results: mean scores by method on both kinds of seeds, and what was gained."""
        # A single training reward of weight 1 is the weighted sum: one column is enough.
        parts = [name for name in self.scores if name != REWARD]
        same = any(
            np.array_equal(self[column(part, "prompt", EVAL)], self[column(REWARD, "prompt", EVAL)], equal_nan=True)
            for part in parts
        )
        shown = parts if same else self.scores
        rows = []
        for split, words in ((EVAL, "fresh seeds"), (TUNE, "tune seeds")):
            for method in METHODS:
                means = [_number(_mean(self[column(score, method, split)])) for score in shown]
                rows.append([LABELS[method], words, *means])
            gains = [Gain.of(self.gains(score, split), self.least(score, split)) for score in shown]
            rows.append(["gain over global", words, *(_number(gain.mean, "+") for gain in gains)])
            rows.append(["  +- (95 %)", words, *(_number(Z_95 * gain.standard_error) for gain in gains)])
            rows.append(["  share improved", words, *(f"{gain.improved:.2f}" for gain in gains)])
        cut = int((self["status"] == TRUNCATED).sum())
        head = (
            f"{self.rows} prompts, {self.failed} failed, {cut} cut by the text encoder; "
            f"{_mean(self['steps'][self['status'] != FAILED]):.1f} updates a prompt"
        )
        return f"{head}\n\n{text_table(['negative', 'measured on', *shown], rows)}\n"

    def by_gain(self) -> np.ndarray:
        """The indices of the rows with a gain on fresh seeds, from the largest to the smallest."""
        gains = self.gains()
        order = np.argsort(-gains, kind="stable")
        return order[~np.isnan(gains[order])]

    def chosen(self, each: int) -> list[tuple[str, int]]:
        """Row indices of the best, the middle and the worst gains on fresh seeds, no row twice."""
        order = self.by_gain()
        middle = max(0, len(order) // 2 - each // 2)
        groups = {"best": order[:each], "median": order[middle : middle + each], "worst": order[len(order) - each :]}
        seen: dict[int, str] = {}
        for name, indices in groups.items():
            for index in indices:
                seen.setdefault(int(index), name)
        return [(name, index) for index, name in seen.items()]

    def listed(self) -> list[list[object]]:
        """A header and the rows with the largest and the smallest gains, capped."""
        names = ["prompt_id", "prompt", "category", "status", "error", "steps", "best_step"]
        names += [column(REWARD, method, split) for split in (EVAL, TUNE) for method in METHODS]
        order = self.by_gain()
        failed = np.flatnonzero(self["status"] == FAILED)[:_LISTED]
        ends = order if len(order) <= 2 * _LISTED else np.concatenate([order[:_LISTED], order[-_LISTED:]])
        columns = self._table.select(names).take(np.concatenate([ends, failed])).to_pydict()
        return [list(names), *map(list, zip(*columns.values(), strict=True))]


def draw_distributions(report: TuningReport) -> Image.Image:
    """Histogram of the gains, updates used, gain by category, share improved on fresh seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    (histogram, updates), (by_category, improved) = figure.subplots(2, 2)
    _draw_gains(histogram, report)
    _draw_updates(updates, report)
    names, means, errors, shares = _by_category(report)
    colours = [_SHADE] * (len(names) - 1) + [_DARK]  # the last are all prompts
    by_category.barh(names, means, xerr=errors, capsize=2, color=colours)
    by_category.axvline(0, color="black", linewidth=0.8)
    by_category.set(title="gain on fresh seeds by category, with 95 % intervals", xlabel="mean gain")
    improved.barh(names, shares, color=colours)
    improved.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    improved.set(title="share of prompts improved on fresh seeds", xlim=(0, 1), xlabel="share")
    improved.tick_params(labelleft=False)  # the names are those of the panel beside it
    return render(figure)


def _draw_gains(axes: "Axes", report: TuningReport) -> None:
    """Both kinds of seeds in the same bins."""
    gains = {split: found[~np.isnan(found)] for split in (TUNE, EVAL) for found in [report.gains(split=split)]}
    bins = np.histogram_bin_edges(np.concatenate(list(gains.values())), bins=40).tolist()
    for split, words, colour, alpha in ((TUNE, "tune seeds", _SHADE, 0.45), (EVAL, "fresh seeds", _DARK, 0.75)):
        label = f"{words}, mean {_mean(gains[split]):+.3f}"
        axes.hist(gains[split], bins=bins, histtype="stepfilled", alpha=alpha, color=colour, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(title="gain in the training reward over global", xlabel="gain", ylabel="prompts")
    axes.legend(loc="upper right")


def _draw_updates(axes: "Axes", report: TuningReport) -> None:
    """How many updates were made, and after how many the best embedding was found, side by side."""
    ok = report["status"] != FAILED
    counts = [report[name][ok].astype(int) for name in ("steps", "best_step")]
    most = max((int(values.max()) for values in counts if len(values)), default=0)
    bars = [np.bincount(values, minlength=most + 1) for values in counts]
    highest = max(1, *(int(heights.max()) for heights in bars))  # the legend stands above the bars
    for shift, heights, words, colour in (
        (-0.2, bars[0], "updates made", _SHADE),
        (0.2, bars[1], "updates to the best embedding", _DARK),
    ):
        axes.bar(np.arange(most + 1) + shift, heights, width=0.4, color=colour, label=words)
    axes.set(title="updates of a prompt's embedding", xlabel="updates", ylabel="prompts", ylim=(0, 1.25 * highest))
    axes.set_xticks(range(0, most + 1, max(1, most // 10)))
    axes.legend(loc="upper left", ncols=2)


def _by_category(report: TuningReport) -> tuple[list[str], list[float], list[float], list[float]]:
    """Name, mean gain on fresh seeds, 95 % half width, share improved; the largest categories, all in the end."""
    gains, categories, least = report.gains(), report["category"], report.least()
    counts = Counter(name for name in categories if name)
    largest = sorted(counts, key=lambda name: -counts[name])[:20]
    groups = {f"{name} ({counts[name]})": Gain.of(gains[categories == name], least) for name in largest}
    groups[f"all ({report.rows})"] = Gain.of(gains, least)
    return (
        list(groups),
        [gain.mean for gain in groups.values()],
        [0.0 if math.isnan(gain.standard_error) else Z_95 * gain.standard_error for gain in groups.values()],
        [gain.improved for gain in groups.values()],
    )


def write_listed(report: TuningReport, path: Path) -> Path:
    """The capped table as CSV, which MLflow's artifact viewer shows as a table."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(report.listed())
    return path


def _for_report(rows: pa.Table) -> pa.Table:
    """What the report needs of rows."""
    rows = rows.drop_columns([name for name in rows.column_names if name.endswith("_seeds")])
    for name in _REPEATED:
        if name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(name), name, rows[name].dictionary_encode())
    return rows


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _number(value: float, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f}"
