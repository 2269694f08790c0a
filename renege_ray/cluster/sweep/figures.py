"""Figures of a sweep, each as a Plotly figure and as a PNG, by Optuna's own plots.

Optuna draws only trials that were trained to their end, and with successive halving those are few. So the plots are
made of a copy of the study in which a trial that was stopped early counts with the best value that it had reached by
then, and parameters have short names.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from renege_ray.errors import describe
from renege_ray.output.names import file_names
from renege_ray.output.whole_files import whole_file

FEWEST_TRIALS = 3
FEWEST_FOR_IMPORTANCE = 6
CONTOUR = ("lr", "guidance_scale")
MOST_PARAMETERS = 12
MOST_IN_LEGEND = 12
_DPI = 110


@dataclass(frozen=True)
class SweepFigure:
    """`html` is a fragment of a page that has Plotly's script; `png` is a file."""

    name: str
    title: str
    html: str
    png: Path


def draw_figures(study: optuna.Study, objectives: Sequence[str], folder: Path) -> tuple[list[SweepFigure], list[str]]:
    """All figures that there are trials enough for, their PNGs in `folder`; and what was left out, with the reason.

    `objectives`: what to call the values of a trial, in order.
    """
    figures: list[SweepFigure] = []
    left_out: list[str] = []
    several = len(objectives) > 1
    planned: list[tuple[_Plot, optuna.Study, str]] = []
    names = file_names(objectives)
    for place, objective in enumerate(objectives):
        copy = copy_for_figures(study, place)
        planned += [(plot, copy, f"_{names[objective]}" if several else "") for plot in _plots(copy, objective)]
    if several:
        options = {"target_names": list(objectives)}
        planned.append(
            (_Plot("pareto_front", "trade-off between the objectives", "plot_pareto_front", options), study, "")
        )
    for plot, trials, suffix in planned:
        path = folder / f"sweep_{plot.name}{suffix}.png"
        try:
            figures.append(plot.draw(trials, path))
        except Exception as error:  # whatever goes wrong with a figure must not cost the results of a sweep
            known = isinstance(error, ValueError | RuntimeError)
            left_out.append(f"{plot.title}: left out, {str(error) if known else describe(error)}")
            path.unlink(missing_ok=True)  # an older one would show another state of the sweep
    return figures, left_out


def copy_for_figures(study: optuna.Study, place: int) -> optuna.Study:
    """A study in memory of one objective, with the trials' numbers, values and short parameter names.

    A trial without a finite value is there as a failed one.
    """
    short = short_names({name for trial in study.get_trials(deepcopy=False) for name in trial.params})
    copy = optuna.create_study(direction=study.directions[place].name.lower())
    for trial in study.get_trials(deepcopy=False):
        value = value_of(trial, place, study.directions[place])
        copy.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if value is None else TrialState.COMPLETE,
                value=value,
                params={short[name]: item for name, item in trial.params.items()},
                distributions={short[name]: item for name, item in trial.distributions.items()},
                intermediate_values=dict(trial.intermediate_values),
            )
        )
    return copy


def value_of(trial: FrozenTrial, place: int, direction: optuna.study.StudyDirection) -> float | None:
    """An objective of a finished trial; for one that was stopped early, the best that it had reached; else None."""
    if trial.state == TrialState.COMPLETE:
        value: float | None = trial.values[place]
    elif trial.state == TrialState.PRUNED and trial.intermediate_values:
        best = max if direction == optuna.study.StudyDirection.MAXIMIZE else min
        value = best(trial.intermediate_values.values())
    else:
        return None
    return value if value is not None and math.isfinite(value) else None


def short_names(names: set[str]) -> dict[str, str]:
    """{name: as much of its end as no other name has}: `optim.lr` is `lr`, `prompts.handwritten: dark` is `dark`."""
    short = {name: name.rpartition(": ")[2] if ": " in name else name.partition(".")[2] or name for name in names}
    taken = list(short.values())
    return {name: text if taken.count(text) == 1 else name for name, text in short.items()}


@dataclass(frozen=True)
class _Plot:
    """One of Optuna's plots: the function's name in both of its modules, and its options."""

    name: str
    title: str
    function: str
    options: Mapping[str, Any]
    fewest: int = FEWEST_TRIALS

    def draw(self, study: optuna.Study, path: Path) -> SweepFigure:
        """Draw both kinds. Raises ValueError or RuntimeError where the trials do not allow it."""
        done = len(_with_value(study))
        if done < self.fewest:
            raise ValueError(f"{done} trials with a value are too few, {self.fewest} are needed")
        import matplotlib
        import optuna.visualization as plotly_plots
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as png_plots

        with warnings.catch_warnings(), matplotlib.rc_context():  # Optuna sets a style for all that is drawn after
            warnings.simplefilter("ignore")  # that these plots of Optuna's are experimental
            try:
                axes = getattr(png_plots, self.function)(study, **self.options)
                picture = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                tidy(picture, self.name, self.title, [name for trial in _with_value(study) for name in trial.params])
                with whole_file(path) as temporary:
                    picture.savefig(temporary, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
            finally:
                pyplot.close("all")
            interactive = getattr(plotly_plots, self.function)(study, **self.options)
        interactive.update_layout(title="", template="plotly_white", margin={"t": 40})  # the page has the title
        if self.name == "curves":
            interactive.update_layout(yaxis_title=self.title.partition(": ")[2])
        html = interactive.to_html(full_html=False, include_plotlyjs=False)
        return SweepFigure(path.stem, self.title, html, path)


def _with_value(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _plots(study: optuna.Study, objective: str) -> list[_Plot]:
    """Those of one objective."""
    target = {"target_name": objective}
    by_weight = _by_importance(study)
    shown = target | {"params": by_weight[:MOST_PARAMETERS]}
    plots = [_Plot("history", f"optimisation history: {objective}", "plot_optimization_history", target)]
    if any(trial.intermediate_values for trial in _with_value(study)):
        plots.append(_Plot("curves", f"validations of each trial: {objective}", "plot_intermediate_values", {}))
    plots += [
        _Plot(
            "importance",
            f"importance of the parameters: {objective}",
            "plot_param_importances",
            target,
            FEWEST_FOR_IMPORTANCE,
        ),
        _Plot("slice", f"slice of each parameter: {objective}", "plot_slice", shown),
        _Plot("parallel", f"parallel coordinates: {objective}", "plot_parallel_coordinate", shown),
    ]
    if pair := _pair(study, by_weight):
        title = f"{pair[0]} against {pair[1]}: {objective}"
        plots.append(_Plot("contour", title, "plot_contour", target | {"params": pair}))
    return plots


def _pair(study: optuna.Study, by_weight: Sequence[str]) -> list[str]:
    """Learning rate and guidance scale; where one is not there, the two most important numbers; or none."""
    named = [name for name in CONTOUR if name in by_weight]
    numbers = {
        name
        for trial in _with_value(study)
        for name, distribution in trial.distributions.items()
        if not isinstance(distribution, optuna.distributions.CategoricalDistribution)
    }
    pair = named if len(named) == 2 else [name for name in by_weight if name in numbers][:2]
    together = [trial for trial in _with_value(study) if set(pair) <= set(trial.params)]
    return pair if len(pair) == 2 and len(together) >= FEWEST_TRIALS else []


def _by_importance(study: optuna.Study) -> list[str]:
    """Parameters, the most important first; in their own order where that cannot be told."""
    done = _with_value(study)
    names = list(dict.fromkeys(name for trial in done for name in trial.params))
    if len(done) < FEWEST_FOR_IMPORTANCE:
        return names
    try:
        ranked = list(optuna.importance.get_param_importances(study))
    except (RuntimeError, ValueError):  # all values the same, or no parameter that all trials have
        return names
    return [*ranked, *(name for name in names if name not in ranked)]


def tidy(figure: Any, name: str, title: str, parameters: Sequence[str]) -> None:
    """One title, room for the labels, and few ticks on logarithmic axes: Optuna's pictures are made for two of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    many = name in {"slice", "parallel"}
    figure.set_size_inches(min(24.0, max(7.5, 2.4 * len(figure.axes))) if many else 7.5, 5.0)
    figure.suptitle(title, fontsize=13)
    for axes in figure.axes:
        axes.set_title("")
        axes.set_title("", loc="left")
        axes.set_facecolor("white")
        if many:
            axes.grid(visible=False)
        else:
            axes.grid(color="0.9")
        for spine in axes.spines.values():
            spine.set_color("0.6")
        for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
            if scale == "log":
                axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
    first = figure.axes[0]
    if name == "slice":
        for axes in figure.axes:
            axes.set_xlabel("\n".join(wrap(axes.get_xlabel().replace(".", ". "), 16)))
    elif name == "parallel":
        labels = [label.get_text() for label in first.get_xticklabels()]
        first.set_xticks(first.get_xticks(), [_whole(label, parameters) for label in labels], rotation=15, ha="right")
    elif name == "curves":
        first.set_ylabel(title.partition(": ")[2])
        if (legend := first.get_legend()) is not None and len(legend.get_texts()) > MOST_IN_LEGEND:
            legend.remove()  # the interactive figure has it


def _whole(label: str, names: Sequence[str]) -> str:
    """The name that Optuna has cut short."""
    start = label.removesuffix("...")
    return next((name for name in names if label != start and name.startswith(start)), label)
