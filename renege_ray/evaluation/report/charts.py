"""The plot of means: one line a method, grouped by style, as SVG that takes its colours from the page."""

import math
from collections.abc import Callable, Sequence
from html import escape

import pandas as pd
from matplotlib.ticker import MaxNLocator

from renege_ray.evaluation.comparison import ALL, Comparison
from renege_ray.evaluation.report.tables import digits_of
from renege_ray.output.numbers import number

WIDTH, LABELS, RIGHT = 520, 120, 64  # px: in all, for the names, for the figures
ROW, HEAD, AXIS = 22, 24, 30
_LONGEST_NAME = 17
COLOURS = ("#8a8f98", "#c98a1b", "#2f7ed8", "#1f9d61", "#b0479c", "#c2483b", "#5a63c4", "#6b7a2a")

_STYLE = """
.chart text { font: 12px system-ui, sans-serif; fill: #1c1c20; }
.chart .faint { fill: #6a6a74; } .chart .group { font-weight: 600; }
.chart line { stroke: #d5d7de; }
"""


def colour_of(index: int) -> str:
    """Of a method, by its place."""
    return COLOURS[index % len(COLOURS)]


def chart_of_means(comparison: Comparison, score: str) -> str:
    """SVG: mean of each method, with its interval freed of pair effects, over all pairs and by style."""
    styles = [ALL, *comparison.styles]
    rows = {(style, method): comparison.mean(score, method, style) for style in styles for method in comparison.methods}
    ends = [row[name] for row in rows.values() for name in ("mean", "paired_low", "paired_high")]
    digits = digits_of(comparison, score)
    finite = _with_room([end for end in ends if math.isfinite(end)], digits)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(min(finite), max(finite))
    low, high = min(ticks[0], min(finite)), max(ticks[-1], max(finite))
    scale = (WIDTH - LABELS - RIGHT) / ((high - low) or 1)

    def x(value: float) -> float:
        return round(LABELS + (value - low) * scale, 1)

    headings = len(styles) > 1
    height = len(rows) * ROW + (len(styles) * HEAD if headings else 6) + AXIS
    parts = [f'<line x1="{x(t)}" x2="{x(t)}" y1="4" y2="{height - AXIS + 4}"/>' for t in ticks if low <= t <= high]
    y = 6
    for style in styles:
        if headings:
            parts.append(f'<text class="group" x="0" y="{y + 15}">{escape(style)}</text>')
            y += HEAD
        for place, method in enumerate(comparison.methods):
            parts += _row(method, rows[style, method], colour_of(place), y + ROW / 2, x, digits)
            y += ROW
    tick_digits = _digits_of_step(ticks)
    for t in ticks:
        if low <= t <= high:
            parts.append(
                f'<text class="faint" x="{x(t)}" y="{height - 8}" text-anchor="middle">{number(t, tick_digits)}</text>'
            )
    said = "; ".join(f"{m} {number(rows[ALL, m]['mean'], digits)}" for m in comparison.methods)
    label = escape(f"Means of {score} over all pairs: {said}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-label="{label}" '
        f'viewBox="0 0 {WIDTH} {height}">{"".join(parts)}</svg>'
    )


def _with_room(ends: Sequence[float], digits: int) -> list[float]:
    """The ends of an axis, far enough apart for ticks that can be told from each other: of a score that is the same for
    all, one in a hundred of it, and ten times what is shown of it.
    """
    if not ends:
        return [0.0, 1.0]
    low, high = min(ends), max(ends)
    middle, span = (low + high) / 2, max(high - low, abs(low + high) / 200, 10.0 ** (1 - digits))
    return [low, high] if span == high - low else [middle - span / 2, middle + span / 2]


def _row(method: str, row: pd.Series, colour: str, y: float, x: Callable[[float], float], digits: int) -> list[str]:
    """Name, whisker, dot and figure of one method."""
    mean, low, high = (float(row[name]) for name in ("mean", "paired_low", "paired_high"))
    parts = [f'<text x="{LABELS - 10}" y="{y + 4}" text-anchor="end">{escape(_cut(method))}</text>']
    if math.isfinite(mean):
        if math.isfinite(low):
            parts.append(
                f'<line style="stroke:{colour};stroke-width:3;stroke-linecap:round;opacity:.55" '
                f'x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle cx="{x(mean)}" cy="{y}" r="4.5" fill="{colour}"/>')
    return [*parts, f'<text x="{WIDTH}" y="{y + 4}" text-anchor="end">{number(mean, digits)}</text>']


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _digits_of_step(ticks: Sequence[float]) -> int:
    """The fewest decimals that show the distance of the ticks."""
    step = float(ticks[1] - ticks[0]) if len(ticks) > 1 else 1.0
    return next((digits for digits in range(8) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 8)


def standalone(chart: str) -> str:
    """The chart as a file of its own, with the colours that the page would give it."""
    return chart.replace(">", f"><style>{_STYLE}</style>", 1)
