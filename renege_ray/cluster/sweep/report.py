"""What a sweep leaves for people: the leaderboard, the best configuration, figures, and one page with all of it."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from renege_ray.cluster.sweep.figures import SweepFigure, draw_figures, value_of
from renege_ray.config.faults import shown_value
from renege_ray.config.run import RunConfig, to_mapping
from renege_ray.config.yaml_files import write_yaml
from renege_ray.errors import UserError
from renege_ray.output.pictures import text_table
from renege_ray.output.whole_files import whole_file
from renege_ray.sweeps.space import SearchSpace

# User attributes of trials.
REASON, STEPS, SECONDS, OUTSIDE = "reason", "steps", "seconds", "outside the space"
BEST_CONFIG = "best_config.yaml"
TEMPLATE = "report.html.j2"
_LONGEST_REASON = 60


@dataclass(frozen=True)
class TrialRow:
    """One trial on the leaderboard."""

    number: int
    state: str
    """One of "finished", "stopped early", "failed" or "running"."""
    values: tuple[float, ...]
    """Of the objectives; a trial that was stopped early has the best that it had reached."""
    settings: Mapping[str, Any]
    """{dotted name: value} of what was drawn."""
    steps: int
    seconds: float
    reason: str = ""
    best: bool = False
    """On the Pareto front, or the best one of a single objective."""


def write_sweep_report(study: optuna.Study, space: SearchSpace, base: RunConfig, folder: Path) -> dict[str, Path]:
    """Write everything below `folder`; what is there already is replaced.

    Args:
        study: with the user attributes `reason`, `steps` and `seconds` of its trials.
        space: what was searched.
        base: the preset with the user's flags.
        folder: of the sweep.

    Returns:
        {name: path}. `best_config` is missing where no trial has finished, and so are figures that there are too few
        trials for; the text of the leaderboard says which.
    """
    files: dict[str, Path] = {}
    labels = [objective_label(objective.metric) for objective in space.objectives]
    rows = trial_rows(study, space)
    best = best_trial(study)
    if best is not None:
        files["best_config"] = write_best_config(space, base, best, folder / BEST_CONFIG)
    figures, left_out = draw_figures(study, labels, folder / "images")
    files |= {figure.name: figure.png for figure in figures}
    text = leaderboard(rows, labels)
    notes = [*space.notes, *left_out]
    said = "".join(f"\n{note}" for note in notes)
    files["leaderboard"] = _write(folder / "leaderboard.txt", f"{text}\n{said}\n" if said else f"{text}\n")
    files["leaderboard_csv"] = _write(folder / "leaderboard.csv", _as_csv(rows, [o.metric for o in space.objectives]))
    files["sweep_report"] = _write_page(folder / "sweep_report.html", space, rows, labels, figures, notes)
    return files


def objective_label(metric: str) -> str:
    """A metric in short: `eval/global/reward/mean` is "global reward"."""
    parts = metric.split("/")
    return f"{parts[1]} {parts[2]}" if parts[-1] == "mean" else " ".join(parts[1:]).replace("_", " ")


def trial_rows(study: optuna.Study, space: SearchSpace) -> list[TrialRow]:
    """The trials from the best to the worst; those that finished, those stopped early, the others."""
    front = {trial.number for trial in study.best_trials}
    states = {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "stopped early",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
    }
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state not in states or OUTSIDE in trial.user_attrs:
            continue
        values = [value_of(trial, place, direction) for place, direction in enumerate(study.directions)]
        took = trial.duration.total_seconds() if trial.duration else math.nan
        rows.append(
            TrialRow(
                trial.number,
                states[trial.state],
                tuple(value for value in values if value is not None),
                _settings(space, trial),
                int(trial.user_attrs.get(STEPS, max(trial.intermediate_values, default=0))),
                float(trial.user_attrs.get(SECONDS, took)),
                str(trial.user_attrs.get(REASON, "")),
                trial.number in front,
            )
        )
    order = list(states.values())
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return sorted(
        rows,
        key=lambda row: (
            order.index(row.state), not row.best, sign * row.values[0] if row.values else math.inf, row.number
        ),
    )  # fmt: skip


def _settings(space: SearchSpace, trial: FrozenTrial) -> dict[str, Any]:
    """What a trial was set to; a trial that died while it was drawn has no whole point."""
    try:
        return space.settings(trial.params)
    except UserError:
        return dict(trial.params)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The trial with the best value among the finished ones; None where there is none.

    With several objectives, the one of the Pareto front that is nearest to the ideal point (each objective scaled to
    the front's range, the Euclidean distance): the middle way between them.
    """
    front = [trial for trial in study.best_trials if all(map(math.isfinite, trial.values))]
    if not front:
        return None
    signs = [1 if direction == StudyDirection.MAXIMIZE else -1 for direction in study.directions]
    merits = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in front]
    ideal = [max(column) for column in zip(*merits, strict=True)]
    spread = [max(column) - min(column) or 1.0 for column in zip(*merits, strict=True)]

    def distance(place: int) -> float:
        return math.hypot(*((top - own) / width for top, own, width in zip(ideal, merits[place], spread, strict=True)))

    return front[min(range(len(front)), key=lambda place: (distance(place), front[place].number))]


def write_best_config(space: SearchSpace, base: RunConfig, trial: FrozenTrial, path: Path) -> Path:
    """Write the configuration of a trial as a preset: `renege-ray train-global --preset PATH`."""
    data = to_mapping(space.config(base, trial.params))
    data.pop("output_dir")
    names = ", ".join(
        f"{objective.metric} {value:.4f}" for objective, value in zip(space.objectives, trial.values, strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_yaml(
        path, data, f"Trial {trial.number} of a sweep over {space.name}: {names}. Use it by --preset {path.name}"
    )
    return path


def leaderboard(rows: Sequence[TrialRow], labels: Sequence[str]) -> str:
    """The table of trials as aligned text; * is the best one, or the Pareto front."""
    return text_table(*_table(rows, labels, _LONGEST_REASON))


def _table(rows: Sequence[TrialRow], labels: Sequence[str], longest_reason: int) -> tuple[list[str], list[list[str]]]:
    """A header, and a row of cells for each trial."""
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    header = ["trial", "state", *labels, *(name.partition(".")[2] or name for name in names), "steps", "seconds"]
    cells = [
        [
            f"{row.number}{' (preset)' if row.number == 0 else ''}{' *' if row.best else ''}",
            _state(row, longest_reason),
            *([f"{value:.4f}" for value in row.values] or [""] * len(labels)),
            *(_cell(row.settings.get(name)) for name in names),
            str(row.steps),
            "" if math.isnan(row.seconds) else f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return header, cells


def _state(row: TrialRow, longest: int) -> str:
    text = f"{row.state}: {row.reason}" if row.reason else row.state
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    return value if isinstance(value, str) else shown_value(value)


def _as_csv(rows: Sequence[TrialRow], metrics: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "reason", "best", *metrics, *names, "steps", "seconds"])
    for row in rows:
        values = row.values or [""] * len(metrics)
        settings = [row.settings.get(name, "") for name in names]
        writer.writerow([row.number, row.state, row.reason, row.best, *values, *settings, row.steps, row.seconds])
    return text.getvalue()


def _write_page(
    path: Path,
    space: SearchSpace,
    rows: Sequence[TrialRow],
    labels: Sequence[str],
    figures: Sequence[SweepFigure],
    notes: Sequence[str],
) -> Path:
    """One page that needs no network: Plotly's script is in it once."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    header, cells = _table(rows, labels, longest_reason=200)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("renege_ray.cluster.sweep", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    content = environment.get_template(TEMPLATE).stream(
        space=space,
        aims=", ".join(f"{objective.direction} {objective.metric}" for objective in space.objectives),
        notes=notes,
        header=header,
        rows=list(zip(rows, cells, strict=True)),
        figures=[{"title": figure.title, "html": Markup(figure.html)} for figure in figures],
        style=Markup(resources.files("renege_ray.evaluation.report").joinpath("style.css").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )
    with whole_file(path) as temporary:
        content.dump(str(temporary), encoding="utf-8")
    return path


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
