"""The report as one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from renege_ray.evaluation.agreement import disagreements
from renege_ray.evaluation.comparison import ALL, Comparison, Step
from renege_ray.evaluation.report.charts import colour_of
from renege_ray.evaluation.report.gallery import make_gallery
from renege_ray.evaluation.report.tables import ABOUT, Table, digits_of
from renege_ray.output.numbers import interval, number
from renege_ray.output.whole_files import whole_file
from renege_ray.rewards.base import UNRANKED

_DIRECTIONS = {1: "up", 0: "same", -1: "down", None: ""}


@dataclass(frozen=True)
class Cell:
    """A win rate of a matrix; `share` colours it."""

    text: str
    bounds: str
    share: float


def write_page(
    path: Path,
    comparison: Comparison,
    table: pd.DataFrame,
    papers: Sequence[Table],
    charts: Mapping[str, str],
    *,
    train_score: str,
    others: Sequence[str],
    title: str,
    notes: Sequence[str],
    images_root: str,
) -> Path:
    """Write the page and return its path."""
    scores = list(dict.fromkeys([train_score, *others, *comparison.scores]))
    ranked = [score for score in scores if score not in UNRANKED]
    roles = dict.fromkeys(others, "not trained against") | {train_score: "trained against"}
    page = _environment().get_template("page.html.j2")
    content = page.stream(
        title=title,
        notes=[*notes, *left_out(comparison)],
        comparison=comparison,
        train_score=train_score,
        headline=headline(comparison, train_score),
        answer=answer(comparison, train_score),
        agreement=disagreements(comparison, train_score, others),
        tables={paper.name: paper for paper in papers},
        charts={score: Markup(charts[score]) for score in scores},
        roles=roles,
        about=ABOUT,
        score_rows=score_rows(comparison, scores, roles),
        matrices={score: win_matrix(comparison, score) for score in ranked},
        gallery=make_gallery(comparison, table, train_score, others, images_root),
        style=_asset("style.css"),
        program=_asset("gallery.js"),
        colours=[colour_of(i) for i in range(len(comparison.methods))],
    )
    with whole_file(path) as temporary:
        content.dump(str(temporary), encoding="utf-8", errors="xmlcharrefreplace")
    return path


def headline(comparison: Comparison, score: str) -> tuple[str, str]:
    """Whether the last method beats the first, in a word and in a sentence; ("", "") of one method."""
    first, last = comparison.methods[0], comparison.methods[-1]
    if first == last:
        return "", ""
    row, digits = comparison.between(score, last, first), digits_of(comparison, score)
    rates = [f"{100 * rate:.0f}" for rate in (row["win_rate"], row["win_rate_low"], row["win_rate_high"])]
    verdict = comparison.step(score, first, last).verdict
    claimed = verdict is not None
    words = {1: "Yes.", 0: "That cannot be told.", -1: "No.", None: "Too few prompts or seeds to tell."}
    wins = f"{last} wins over {first} on {rates[0]} %{f' [{rates[1]}, {rates[2]}]' if claimed else ''} of the pairs"
    gain = number(row["difference"], digits, signed=True)
    bounds = f" {interval(row['difference_low'], row['difference_high'], digits)}" if claimed else ""
    return words[verdict], f"{wins}; its gain in {score} is {gain}{bounds}."


def answer(comparison: Comparison, score: str) -> list[dict[str, str]]:
    """The methods in their order with their means, and how each compares with the one before."""
    digits = digits_of(comparison, score)
    steps: list[Step | None] = [None, *comparison.steps(score)]
    found = []
    for method, step in zip(comparison.methods, steps, strict=True):
        row = comparison.mean(score, method)
        found.append(
            {
                "method": method,
                "mean": number(row["mean"], digits),
                "interval": interval(row["paired_low"], row["paired_high"], digits),
                "direction": _DIRECTIONS[step.verdict] if step else "",
                "words": _words(step, digits) if step else "",
            }
        )
    return found


def score_rows(comparison: Comparison, scores: Sequence[str], roles: Mapping[str, str]) -> list[dict[str, str]]:
    """Of each score what it says, the means of the first and the last method, and how the two compare."""
    first, last = comparison.methods[0], comparison.methods[-1]
    rows = []
    for score in scores:
        digits = digits_of(comparison, score)
        found = {
            "score": score,
            "about": ABOUT.get(score, ""),
            "role": roles.get(score, ""),
            "first": number(comparison.mean(score, first)["mean"], digits),
            "last": number(comparison.mean(score, last)["mean"], digits),
        }
        if first != last:
            row = comparison.between(score, last, first)
            ranked = score not in UNRANKED
            found |= {
                "direction": _DIRECTIONS[comparison.step(score, first, last).verdict] if ranked else "",
                "gain": number(row["difference"], digits, signed=True),
                "gain_bounds": interval(row["difference_low"], row["difference_high"], digits),
                "wins": number(row["win_rate"], 2) if ranked else "",
                "wins_bounds": interval(row["win_rate_low"], row["win_rate_high"], 2) if ranked else "",
            }
        rows.append(found)
    return rows


def _words(step: Step, digits: int) -> str:
    by = f"{number(step.difference, digits, signed=True)} {interval(step.low, step.high, digits)}"
    if step.verdict is None:
        return f"{number(step.difference, digits, signed=True)} against {step.lower}; no interval is claimed"
    if step.verdict == 0:
        return f"{by}: no difference can be told from {step.lower}"
    if step.verdict == -1:
        return f"{by}: below {step.lower}"
    if step.separated:
        return f"{by}: above {step.lower}, and the intervals of the two, freed of what they share, do not overlap"
    return f"{by}: above {step.lower}, but the intervals of the two, freed of what they share, overlap"


def win_matrix(comparison: Comparison, score: str) -> list[tuple[str, list[Cell | None]]]:
    """How often the method of a row beats that of a column, over all pairs; nothing on the diagonal."""
    rows = []
    for method in comparison.methods:
        cells: list[Cell | None] = []
        for other in comparison.methods:
            if other == method:
                cells.append(None)
                continue
            row = comparison.between(score, method, other, ALL)
            rate = float(row["win_rate"])
            bounds = interval(row["win_rate_low"], row["win_rate_high"], 2)
            cells.append(Cell(number(rate, 2), bounds, rate if rate == rate else 0.5))
        rows.append((method, cells))
    return rows


def left_out(comparison: Comparison) -> list[str]:
    """Sentences about images that are in no average."""
    found = []
    for row in comparison.counts.itertuples():
        parts = [f"{getattr(row, status)} {status}" for status in ("black", "nan", "failed") if getattr(row, status)]
        if parts:
            found.append(f"{row.method}: {', '.join(parts)} of {row.images} images; they are in no average.")
        if row.marked:
            found.append(f"{row.method}: {row.marked} of {row.images} rows are marked; their cards say why.")
        missing = len(comparison.pairs) - row.images
        if missing:
            found.append(f"{row.method}: {missing} of {len(comparison.pairs)} pairs have no row of it.")
    return found


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment


def _text(name: str) -> str:
    return resources.files("renege_ray.evaluation.report").joinpath(name).read_text(encoding="utf-8")


def _asset(name: str) -> Markup:
    """A style or a program of the package's own: no text from outside."""
    return Markup(_text(name))
