"""The whole report: its tables, its plots and its page."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from renege_ray.evaluation.comparison import Comparison
from renege_ray.evaluation.report.charts import chart_of_means, standalone
from renege_ray.evaluation.report.page import write_page
from renege_ray.evaluation.report.tables import paper_tables, tidy_tables, write_tables
from renege_ray.output.names import file_names
from renege_ray.output.whole_files import whole_file


def write_report(
    folder: Path,
    table: pd.DataFrame,
    *,
    methods: Sequence[str],
    scores: Sequence[str],
    train_score: str,
    held_out_scores: Sequence[str],
    judge_scores: Sequence[str],
    title: str,
    notes: Sequence[str],
    images_root: str,
) -> dict[str, Path]:
    """Write `report.html`, `tables/` and `plots/` into the folder; what is there already is replaced.

    Args:
        table: a row for each pair and method, see `renege_ray.evaluation.comparison.COLUMNS`; `score/NAME`, `image`
            (relative to `images_root`, "" for none) and `refined_prompt` beside them.
        methods: in the order that they are shown in, best said from the weakest to the strongest.
        scores: all that is shown; `train_score`, `held_out_scores` and `judge_scores` are among them.
        notes: sentences for the top of the report: models, settings, what was left out.

    Returns:
        name -> file, for MLflow and `summary.json`.

    Raises:
        ValueError: the table does not hold what is asked for.
    """
    unknown = {train_score, *held_out_scores, *judge_scores} - set(scores)
    if unknown:
        raise ValueError(f"write_report: {sorted(unknown)} is not among the scores {list(scores)}")
    comparison = Comparison.from_table(table, scores, methods)
    papers, tidy = paper_tables(comparison, train_score), tidy_tables(comparison)
    written = write_tables(folder / "tables", papers, tidy)
    charts = {score: chart_of_means(comparison, score) for score in scores}
    names = file_names(scores)
    for score, chart in charts.items():
        name = names[score]
        with whole_file(folder / "plots" / f"means_{name}.svg") as path:
            path.write_text(standalone(chart), encoding="utf-8")
        written[f"plot_{name}"] = folder / "plots" / f"means_{name}.svg"
    written["report"] = write_page(
        folder / "report.html",
        comparison,
        table,
        papers,
        charts,
        train_score=train_score,
        others=[*held_out_scores, *judge_scores],
        title=title,
        notes=notes,
        images_root=images_root,
    )
    return written
