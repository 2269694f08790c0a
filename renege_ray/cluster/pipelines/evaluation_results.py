"""What a finished evaluation leaves for people: the table, the paper's tables, the report, the summary."""

from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from renege_ray.cluster.pipelines.pipeline import Outcome
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.config.run import RunConfig
from renege_ray.errors import as_written
from renege_ray.evaluation.comparison import BLACK, FAILED, NAN, Comparison
from renege_ray.evaluation.inputs import EvaluationInputs, scores_of
from renege_ray.evaluation.report.page import headline
from renege_ray.evaluation.report.tables import digits_of
from renege_ray.evaluation.report.write import write_report
from renege_ray.evaluation.table import score_names, with_weighted_reward
from renege_ray.output.console import say
from renege_ray.output.folder import CONFIG_FILE, shown_path, write_text
from renege_ray.output.numbers import number
from renege_ray.output.pictures import text_table
from renege_ray.output.whole_files import whole_file
from renege_ray.prompts.sources import source_label
from renege_ray.rewards.base import UNRANKED
from renege_ray.rewards.catalogue import full_name
from renege_ray.sampling.run_rewards import REWARD

LEFT_OUT = (BLACK, NAN, FAILED, "marked")


def keep_results(
    config: RunConfig, inputs: EvaluationInputs, table: pd.DataFrame, images: str, outcome: Outcome, log: RunLog
) -> int:
    """Write the table, the report and the summary below the output folder; tell MLflow; print the last lines.

    Args:
        table: a row for each image that there is.
        images: the folder or URI of the images.

    Returns:
        The exit code: 0 if every image has its row, and no more of them failed than are allowed.
    """
    folder = config.output_dir
    methods = [negative.label for negative in inputs.negatives]
    table, roles = assign_roles(config, table)
    names = score_names(table.columns)
    written = write_report(
        folder,
        table,
        methods=methods,
        scores=names,
        train_score=roles.train,
        held_out_scores=roles.held_out,
        judge_scores=roles.judges,
        title=f"{', '.join(methods)} on {as_written(config.model.id)}",
        notes=[_settings(config, inputs), *inputs.notes],
        images_root=images,
    )
    comparison = Comparison.from_table(table, names, methods)
    with whole_file(folder / "images.parquet") as path:
        table.to_parquet(path, index=False)
    text = results_text(comparison, roles.train)
    write_text(folder / "results.txt", text)
    log.describe(folder / "results.txt", headline(comparison, roles.train)[1])
    metrics = comparison.metrics() | performance(outcome.figures)
    log.metrics(len(table), metrics)
    failed, missing = int((table["status"] == FAILED).sum()), outcome.missing
    too_many = failed > config.evaluation.max_failed
    artifacts = {"config": CONFIG_FILE, "table": "results.txt", "images": "images.parquet"}
    log.finish(
        "failed" if too_many or missing else "finished",
        artifacts={name: folder / file for name, file in artifacts.items()} | written,
        metrics=metrics,
    )
    say(text)
    if too_many:
        reason = table.loc[table["status"] == FAILED, "error"].iloc[0]
        allowed = config.evaluation.max_failed
        say(f"{failed} images failed, and evaluation.max_failed is {allowed}; the first: {reason}", error=True)
    if missing:
        say(f"{missing} images have no row; the same command goes on with them", error=True)
    say(f"report: {shown_path(written['report'])}")
    say(log.review())
    return int(bool(too_many or missing))


@dataclass(frozen=True)
class Roles:
    """What the scores of a table are: learned from, unseen by any gradient, and merely looked at."""

    train: str
    held_out: tuple[str, ...]
    judges: tuple[str, ...]


def assign_roles(config: RunConfig, table: pd.DataFrame) -> tuple[pd.DataFrame, Roles]:
    """The roles of the scores, by the section `rewards`; several training rewards get a column of their weighted sum.

    Where nothing that was measured is trained against, the first score ranks the methods.
    """
    measured, chosen = score_names(table.columns), scores_of(config)
    weights = {full_name(name): weight for name, weight in config.rewards.train.items()}
    train = [full_name(name) for name in chosen.train]
    held_out = tuple(full_name(name) for name in chosen.held_out)
    ranking = train[0] if train else measured[0]
    if len(weights) > 1 and set(weights) <= set(train):
        table, ranking = with_weighted_reward(table, weights), REWARD
    known = {ranking, *train, *held_out, *UNRANKED}
    return table, Roles(ranking, held_out, tuple(name for name in measured if name not in known))


def results_text(comparison: Comparison, ranking: str) -> str:
    """The table of results: each method's means, and how often it wins over the one before."""
    scores = list(dict.fromkeys([ranking, *comparison.scores]))
    rows = [
        [method, *(number(comparison.mean(score, method)["mean"], digits_of(comparison, score)) for score in scores)]
        for method in comparison.methods
    ]
    for other, method in pairwise(comparison.methods):
        rates = [
            "" if score in UNRANKED else number(comparison.between(score, method, other)["win_rate"], 2)
            for score in scores
        ]
        rows.append([f"wins of {method} over {other}", *rates])
    prompts = comparison.pairs["prompt_id"].nunique()
    head = f"{len(comparison.pairs)} pairs of {prompts} prompts and their seeds; {ranking} ranks the methods"
    counts = comparison.counts.set_index("method")
    bad = [
        f"{method}: {', '.join(f'{int(row[name])} {name}' for name in LEFT_OUT if row[name])}"
        for method, row in counts.iterrows()
        if any(row[name] for name in LEFT_OUT)
    ]
    return "\n".join([head, *bad, "", text_table(["method", *scores], rows)]) + "\n"


def performance(figures: dict[str, float]) -> dict[str, float]:
    """Of this start of the job alone."""
    if not figures.get("rows"):
        return {}
    return {
        "perf/images_per_second": figures["rows"] / figures["wall_seconds"],
        "perf/images_per_worker_second": figures["rows"] / figures["seconds"],
        "perf/load_seconds": figures["load_seconds"],
        "perf/worker_seconds": figures["seconds"],
    }


def _settings(config: RunConfig, inputs: EvaluationInputs) -> str:
    """The settings in a sentence."""
    sampling = config.sampling
    return (
        f"{inputs.prompts} prompts from {source_label(config.evaluation.prompts)}, "
        f"{config.evaluation.seeds_per_prompt} seed(s) each, the same for every method; {as_written(config.model.id)}, "
        f"{sampling.num_inference_steps} deterministic steps at guidance scale {sampling.guidance_scale:g}."
    )
