"""Reading a search space and checking all of it before anything starts: its keys, its fields, its edges."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from renege_ray.config.faults import did_you_mean, fields, shown_value, unknown_field
from renege_ray.config.fingerprint import is_foreign
from renege_ray.config.run import RunConfig, with_values
from renege_ray.config.yaml_files import parse_yaml, read_text, yaml_lines
from renege_ray.errors import UserError
from renege_ray.rewards.catalogue import full_name
from renege_ray.sampling.run_rewards import REWARD
from renege_ray.sweeps.space.constraints import Constraint, parse_constraint
from renege_ray.sweeps.space.declared_space import OF_THE_SWEEP, DeclaredSpace
from renege_ray.sweeps.space.entry import Entry, Place, is_number
from renege_ray.sweeps.space.metrics import reported_metrics
from renege_ray.sweeps.space.python_space import DEFAULTS, PythonSpace
from renege_ray.sweeps.space.space import Drawing, Objective, SchedulerConfig, SearchSpace, values_of, with_preset
from renege_ray.sweeps.space.trials import EdgeTrial

SPACES = Path(__file__).parents[3] / "search_spaces"
SAMPLERS = ("tpe", "random", "nsga2")
SCHEDULERS = ("asha", "median", "none")
_SHARED_KEYS = (
    "constraints", "overrides", "first_points", "objectives", "sampler", "scheduler", "trials", "budget_hours",
)  # fmt: skip
_EDGES_TRIED = 300
_OBJECTIVES = [{"metric": f"eval/global/{REWARD}/mean", "direction": "maximize"}]
_DIRECTIONS = ("maximize", "minimize")


def space_names() -> list[str]:
    """The spaces in the folder `search_spaces`."""
    return sorted(path.stem for path in [*SPACES.glob("*.yaml"), *SPACES.glob("*.py")])


def read_search_space(name_or_path: str | Path, base: RunConfig) -> SearchSpace:
    """A space of the folder `search_spaces` by name, or any YAML or Python file.

    Args:
        name_or_path: such as "paper", or "my_space.yaml".
        base: the preset with the user's flags, which bounds and first points may follow from.

    Raises:
        UserError: there is no such space, or something in it is wrong; the message names file and line.
    """
    path = _locate(name_or_path)
    text = read_text(path)
    if path.suffix == ".py":
        code = PythonSpace(text, str(path), base)
        entry = Entry(code.constants, Place(str(path), code.place.lines), (*_SHARED_KEYS, DEFAULTS))
        return _space(path, entry, base, code, _overrides(entry, base))
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        what = "is empty" if data is None else "holds no map"
        raise UserError(f"{path}: {what}; give at least parameters, such as search_spaces/paper.yaml has")
    entry = Entry(data, Place(str(path), yaml_lines(text)), ("parameters", *_SHARED_KEYS))
    overrides = _overrides(entry, base)
    declared = DeclaredSpace(entry, base, values_of(with_values(base, overrides)), overrides)
    return _space(path, entry, base, declared, overrides)


def _locate(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml", ".py")):
        return Path(text)
    for suffix in (".yaml", ".py"):
        if (path := SPACES / f"{text}{suffix}").is_file():
            return path
    known = space_names()
    hint = did_you_mean(text, known)
    raise UserError(f"--space: there is no search space {text!r}; {hint}known: {', '.join(known)}, or a file")


def _space(path: Path, entry: Entry, base: RunConfig, drawing: Drawing, overrides: Mapping[str, Any]) -> SearchSpace:
    """The whole space, checked."""
    common = with_values(base, dict(overrides))
    objectives = _objectives(entry, common, drawing.described())
    points = _first_points(entry, drawing.fields())
    budget = entry.number("budget_hours", "8", None)
    if budget is not None and budget <= 0:
        entry.fail("budget_hours", f"{budget:g} leaves no time for a trial; give hours above 0, or leave it out")
    space = SearchSpace(
        name=path.stem,
        source=path,
        objectives=objectives,
        sampler=entry.one_of("sampler", SAMPLERS, "tpe"),
        scheduler=_scheduler(entry, common.optim.steps, len(objectives)),
        trials=entry.whole("trials", "24", 20),
        overrides=overrides,
        drawing=drawing,
        fixed=with_preset(values_of(common), values_of(base)),
        budget_hours=budget,
        limits=_constraints(entry),
        wanted_points=(*points, *drawing.candidates(base)),
    )
    notes = (*_shared(overrides), *drawing.notes, *_check_first_points(space, entry, base, len(points)))
    return replace(space, notes=notes, most_updates=_check_edges(space, base))


def _shared(overrides: Mapping[str, Any]) -> list[str]:
    """What a user who has set one of these fields by a flag should know."""
    if not overrides:
        return []
    return [f"set by the space for all trials: {', '.join(f'{name} {value}' for name, value in overrides.items())}"]


def _overrides(entry: Entry, base: RunConfig) -> dict[str, Any]:
    """{field: value}; `{share: 0.15, of: FIELD}` is a part of another field's value, at least 1 where that is whole.

    The other field may be overridden itself, above.
    """
    data, place = entry.value("overrides", "{}", {}), entry.place.at("overrides")
    if not isinstance(data, Mapping):
        place.fail(f"{shown_value(data)} is no map; for example {{optim.steps: 50}}")
    values = dict(values_of(base))
    overrides = {}
    for name, value in data.items():
        if name not in values:
            place.at(name).fail(unknown_field(str(name), RunConfig).partition(": ")[2])
        if name in OF_THE_SWEEP or is_foreign(name, "train_global"):
            place.at(name).fail("is no setting of a trial; leave it out")
        if isinstance(value, Mapping) and "share" in value:
            part = Entry(value, place.at(name), ("share", "of"))
            share, whole = part.number("share", "0.15"), values.get(part.value("of", "optim.steps"))
            if not is_number(whole):
                part.fail("of", f"{shown_value(value['of'])} is no field with a number; for example optim.steps")
            value = max(1, round(share * whole)) if isinstance(whole, int) else share * whole
        overrides[name] = values[name] = value
    try:
        with_values(base, overrides)
    except UserError as error:
        _blame(error, place, overrides)
    return overrides


def _objectives(entry: Entry, config: RunConfig, parameters: Mapping[str, str]) -> tuple[Objective, ...]:
    known = reported_metrics(config)
    found = []
    for number, item in enumerate(entry.items("objectives", "[{metric: ..., direction: maximize}]", _OBJECTIVES)):
        part = Entry(item, entry.place.at("objectives", number), ("metric", "direction"))
        metric = str(part.value("metric", f"eval/global/{REWARD}/mean"))
        if "/held_out/" in metric:
            if not config.rewards.held_out:
                part.fail("metric", f"{metric}: rewards.held_out names none; give it one, or another metric")
            metric = metric.replace("/held_out/", f"/{full_name(config.rewards.held_out[0])}/")
        if metric not in known:
            hint = did_you_mean(metric, known)
            part.fail("metric", f"no trial reports {metric}; {hint}known: eval/METHOD/SCORE/mean, such as {known[0]}")
        if f"/{REWARD}" in metric and any(name.startswith("rewards.train") for name in parameters):
            part.fail("metric", f"{metric} is a sum by the weights searched over; judge by a single reward")
        found.append(Objective(metric, part.one_of("direction", _DIRECTIONS)))  # type: ignore[arg-type]
        if [objective.metric for objective in found].count(metric) > 1:
            part.fail("metric", f"{metric} is given twice")
    return tuple(found)


def _scheduler(entry: Entry, steps: int, objectives: int) -> SchedulerConfig:
    """A name, or a map with the settings; `grace` is a number of updates, or below 1 a share of `optim.steps`."""
    several = objectives > 1
    value = entry.value("scheduler", "asha", "none" if several else "asha")
    data = {"name": value} if isinstance(value, str) else value
    part = Entry(data, entry.place.at("scheduler"), ("name", "grace", "reduction_factor", "min_trials"))
    name = part.one_of("name", SCHEDULERS) if data is not value else part.one_of("name", SCHEDULERS, "asha")
    if several and name != "none":
        entry.fail("scheduler", f"{name} stops trials by one objective, and there are {objectives}; give none")
    grace = part.number("grace", "0.15", 0.15)
    if grace <= 0 or grace > steps or (grace >= 1 and not isinstance(grace, int)):
        part.fail("grace", f"{grace} is neither a number of the {steps} updates nor a share of them; for example 0.15")
    return SchedulerConfig(
        name,
        grace if isinstance(grace, int) else max(1, round(grace * steps)),
        part.whole("reduction_factor", "3", 3, least=2),
        part.whole("min_trials", "3", 3),
    )


def _constraints(entry: Entry) -> tuple[Constraint, ...]:
    found = []
    for number, text in enumerate(entry.items("constraints", "[optim.steps <= 200]", ())):
        try:
            found.append(parse_constraint(str(text), fields(RunConfig)))
        except ValueError as error:
            entry.place.at("constraints", number).fail(str(error))
    return tuple(found)


def _first_points(entry: Entry, known: Sequence[str] | None) -> list[dict[str, Any]]:
    """`known`: the settings that points may have; None is any, where only a function knows them."""
    points = []
    for number, point in enumerate(entry.items("first_points", "[{optim.lr: 0.1}]", ())):
        place = entry.place.at("first_points", number)
        names = known if known is not None or not isinstance(point, Mapping) else [*point]
        points.append(dict(Entry(point, place, names or ()).data))
    return points


def _check_first_points(space: SearchSpace, entry: Entry, base: RunConfig, given: int) -> list[str]:
    """The preset's settings are a point, or near one, and those of the file are points. Returns notes."""
    values = values_of(base)
    start = space.nearest_point(values)
    if start.unwanted:
        entry.place.at(DEFAULTS).fail(
            f"what are the preset's own settings for {start.unwanted[0]!r}? "
            f"For example DEFAULTS = {{{start.unwanted[0]!r}: {start.point[start.unwanted[0]]!r}}}"
        )
    notes = [
        f"{name}: the preset's {shown_value(wanted)} is outside the space, so the first trial has {shown_value(inside)}"
        for name, (wanted, inside) in start.moved.items()
    ]
    for number, limit in enumerate(space.limits):
        place = entry.place.at("constraints", number)
        try:
            violation = space.constraints(start.point)[number]
        except ValueError as error:
            place.fail(str(error))
        if violation > 0:
            place.fail(f"{limit.text!r} is not met by the preset's own settings, which are the first trial")
    for number, wanted in enumerate(space.wanted_points[:given]):
        place = entry.place.at("first_points", number)
        try:
            trial = space.nearest_point(values | dict(wanted))
        except (TypeError, ValueError) as error:
            place.fail(f"{shown_value(dict(wanted))} cannot be a point: {error}")
        moved = {name: pair for name, pair in trial.moved.items() if name not in start.moved}
        if moved:
            name, (value, _) = next(iter(moved.items()))
            place.fail(f"{name} {shown_value(value)} is outside the space")
        if not space.is_feasible(trial.point):
            place.fail(f"{shown_value(dict(wanted))} does not meet the constraints")
    return notes


def _check_edges(space: SearchSpace, base: RunConfig) -> int:
    """Every mixture of the ends of ranges and of choices that meets the constraints is a valid configuration.

    Returns the most updates of any.
    """
    rng = random.Random(0)
    most = 0
    for number in range(_EDGES_TRIED):
        trial = EdgeTrial(rng) if number else space.nearest_point(values_of(base))
        settings = space.drawing.draw(trial, space.fixed)
        try:
            if space.is_feasible(trial.point):
                most = max(most, space.config(base, trial.point).optim.steps)
        except UserError as error:
            _blame(error, space.drawing.place, settings)
    return most


def _blame(error: UserError, place: Place, names: Mapping[str, Any]) -> None:
    """Raise the configuration's complaint about a value with the line of the file that gave it."""
    field, _, message = str(error).partition(": ")
    if field in names:
        place.at(field).fail(message)
    place.fail(str(error))
