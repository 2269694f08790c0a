"""The paper's tables: what is in their cells, and Markdown, LaTeX, CSV and Parquet of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from renege_ray.evaluation.comparison import ALL, Comparison
from renege_ray.output import image_statistics
from renege_ray.output.numbers import NOTHING, digits_for, interval, number
from renege_ray.output.whole_files import whole_file
from renege_ray.prompts.published import SETS
from renege_ray.rewards import catalogue as rewards
from renege_ray.rewards.base import UNRANKED
from renege_ray.sampling.run_rewards import REWARD

# What a score says, in a few words.
ABOUT = {**rewards.ABOUT, **image_statistics.ABOUT, REWARD: "the weighted sum of what was trained against"}


@dataclass(frozen=True)
class Table:
    """A table for people: `stub` of the columns name the row, the others are figures."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    stub: int = 1


def tidy_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """The same for programs: a row a figure, full precision."""
    tidy = {"means": comparison.means, "win_rates": comparison.comparisons, "counts": comparison.counts}
    return tidy | ({"splits": comparison.splits()} if is_hpsv2(comparison) else {})


def paper_tables(comparison: Comparison, train_score: str) -> list[Table]:
    """Means (Tab. 2), win rates (Tab. 3), what was left out, and HPSv2's splits where the set is HPSv2's."""
    tables = [_means(comparison), _win_rates(comparison, train_score)]
    if is_hpsv2(comparison):
        tables.append(_splits(comparison))
    return [*tables, _counts(comparison)]


def is_hpsv2(comparison: Comparison) -> bool:
    """Whether the styles are the four of HPSv2's benchmark."""
    return set(comparison.styles) == {file.category for file in SETS["hpsv2"].files}


def digits_of(comparison: Comparison, score: str) -> int:
    """Decimals for the means of a score."""
    return digits_for(comparison.means.loc[comparison.means["score"] == score, "mean"].abs().max())


def _means(comparison: Comparison) -> Table:
    styles = [*comparison.styles, ALL]
    rows = []
    for score in comparison.scores:
        digits = digits_of(comparison, score)
        for method in comparison.methods:
            found = [comparison.mean(score, method, style) for style in styles]
            cells = [
                f"{number(row['mean'], digits)} {interval(row['paired_low'], row['paired_high'], digits)}"
                for row in found
            ]
            rows.append((score, method, *cells))
    caption = (
        "Mean by style and reward with 95 % paired bootstrap intervals (resampled by prompt, freed of pair effects): "
        "compare the methods of a column by them."
    )
    return Table("means", caption, ("score", "method", *styles), tuple(rows), stub=2)


def _win_rates(comparison: Comparison, train_score: str) -> Table:
    styles = [*comparison.styles, ALL]
    scores = [train_score, *(score for score in comparison.scores if score != train_score)]
    rows = []
    for score in scores:
        if score in UNRANKED:
            continue
        for other, method in combinations(comparison.methods, 2):
            found = [comparison.between(score, method, other, style) for style in styles]
            cells = [
                f"{number(row['win_rate'], 2)} {interval(row['win_rate_low'], row['win_rate_high'], 2)}"
                for row in found
            ]
            rows.append((score, f"{method} over {other}", *cells))
    caption = "Win rates on the same prompts and seeds, with 95 % bootstrap intervals over prompts; a tie counts half."
    return Table("win_rates", caption, ("score", "methods", *styles), tuple(rows), stub=2)


def _splits(comparison: Comparison) -> Table:
    splits = comparison.splits().set_index(["score", "style", "method"])
    styles = [style for style in comparison.styles if (splits.index.get_level_values("style") == style).any()]
    rows = []
    for score in comparison.scores:
        digits = digits_of(comparison, score)
        for method in comparison.methods:
            found = [splits.loc[(score, style, method)] for style in styles]
            cells = [f"{number(row['mean'], digits)} ± {number(row['spread'], digits)}" for row in found]
            rows.append((score, method, *cells))
    caption = "HPSv2's own protocol: mean and standard deviation of the means of ten groups of prompts in each style."
    return Table("splits", caption, ("score", "method", *styles), tuple(rows), stub=2)


def _counts(comparison: Comparison) -> Table:
    names = ("images", "ok", "black", "nan", "failed", "marked")
    rows = tuple(
        (str(row.method), *(str(getattr(row, name)) for name in names)) for row in comparison.counts.itertuples()
    )
    caption = "Images by status. Only those that are ok are averaged; a marked row used a fallback."
    return Table("counts", caption, ("method", *names), rows)


def write_tables(folder: Path, tables: Iterable[Table], tidy: Mapping[str, pd.DataFrame]) -> dict[str, Path]:
    """NAME.md and NAME.tex of the tables for people, NAME.csv and NAME.parquet of those for programs."""
    written = {}
    for table in tables:
        for suffix, text in (("md", markdown(table)), ("tex", latex(table))):
            written[f"{table.name}_{suffix}"] = folder / f"{table.name}.{suffix}"
            with whole_file(folder / f"{table.name}.{suffix}") as path:
                path.write_text(text, encoding="utf-8")
    for name, frame in tidy.items():
        for suffix in ("csv", "parquet"):
            written[f"{name}_{suffix}"] = folder / f"{name}.{suffix}"
            with whole_file(folder / f"{name}.{suffix}") as path:
                frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path, index=False)
    return written


def markdown(table: Table) -> str:
    """A pipe table with the caption above it; figures flush right."""
    rules = ["---"] * table.stub + ["---:"] * (len(table.header) - table.stub)
    lines = [_pipes(table.header), _pipes(rules), *map(_pipes, table.rows)]
    return f"{table.caption}\n\n" + "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A booktabs table, everything that TeX would take for its own escaped."""
    frame = pd.DataFrame(list(table.rows), columns=list(table.header))
    columns = "l" * table.stub + "r" * (len(table.header) - table.stub)
    text: str = (
        frame.style.hide(axis="index")
        .format(escape="latex")
        .format_index(escape="latex", axis=1)
        .to_latex(
            hrules=True, column_format=columns, caption=table.caption.replace("%", r"\%"), label=f"tab:{table.name}"
        )
    )
    return text.replace("\N{MINUS SIGN}", "$-$").replace("±", r"$\pm$").replace(NOTHING, "--")


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"
