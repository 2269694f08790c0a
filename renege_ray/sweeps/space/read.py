"""Reading a search space and checking all of it before anything starts: its keys, its fields, its edges."""

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from renege_ray.config.faults import did_you_mean, shown_value, unknown_field
from renege_ray.config.fingerprint import is_foreign
from renege_ray.config.run import RunConfig, SamplingConfig, with_values
from renege_ray.config.yaml_files import parse_yaml, read_text, yaml_lines
from renege_ray.errors import UserError
from renege_ray.rewards.catalogue import full_name
from renege_ray.sampling.run_rewards import REWARD
from renege_ray.sweeps.space.declared_space import OF_THE_SWEEP, DeclaredSpace
from renege_ray.sweeps.space.metrics import reported_metrics
from renege_ray.sweeps.space.parameters import Values
from renege_ray.sweeps.space.place import Described, Place, Real, Whole, unknown_key, validated
from renege_ray.sweeps.space.python_space import DEFAULTS, PythonSpace
from renege_ray.sweeps.space.space import Drawing, Objective, SchedulerConfig, SearchSpace, values_of
from renege_ray.sweeps.space.trials import AnsweringTrial, EdgeTrial, NearestTrial, OutsideSpace


def spaces_folder(room: Path) -> Path:
    """Where the spaces are: in the package's folder `sweeps`, where a wheel has them, or at the top of a checkout."""
    return installed if (installed := room / "search_spaces").is_dir() else room.parents[1] / "search_spaces"


SPACES = spaces_folder(Path(__file__).parents[1])
_EDGES_TRIED = 300


class _Scheduler(Described):
    """`grace` is a number of updates, or below 1 a share of `optim.steps`."""

    name: Literal["asha", "median", "none"] = "asha"
    grace: Real = 0.15
    reduction_factor: Annotated[Whole, Field(ge=2)] = 3
    min_trials: Annotated[Whole, Field(ge=1)] = 3


def _named(said: Any) -> Any:
    return {"name": said} if isinstance(said, str) else said


class _Share(Described):
    """A part of another field's value."""

    share: Real
    of: str


class _Keys(Described):
    """What spaces in YAML and in Python say alike; the latter by constants in capitals."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    first_points: tuple[dict[str, Any], ...] = ()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (
        Objective(metric=f"eval/global/{REWARD}/mean", direction="maximize"),
    )
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    # Several objectives: none, since one alone must not stop trials.
    scheduler: Annotated[_Scheduler, BeforeValidator(_named)] | None = None
    trials: Annotated[Whole, Field(ge=1)] = 20
    budget_hours: Annotated[Real, Field(gt=0)] | None = None
    samples_factor: Annotated[Real, Field(gt=0)] | None = None


class _YamlKeys(_Keys):
    parameters: dict[str, Any]


class _PythonKeys(_Keys):
    defaults: dict[str, Any] = Field(default_factory=dict)


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
    code = PythonSpace(text, str(path), base) if path.suffix == ".py" else None
    kind = _PythonKeys if code else _YamlKeys
    data = code.constants if code else parse_yaml(text, str(path))
    place = Place(str(path), code.place.lines if code else yaml_lines(text))
    if isinstance(data, Mapping) and "constraints" in data:
        place.at("constraints").fail(
            "there is no such key any more; give samples_factor, or write a Python space whose function raises "
            "renege_ray.sweeps.space.OutsideSpace where settings do not go together"
        )
    keys = validated(kind, data, place)
    overrides = _overrides(keys, place.at("overrides"), base)
    preset = values_of(with_values(base, overrides))
    drawing = code or DeclaredSpace(data["parameters"], place.at("parameters"), base, preset, overrides)
    return _space(path, keys, place, base, drawing, overrides)


def _locate(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml", ".py")):
        path = Path(text)
        if path.stem in space_names() and not path.exists():
            raise UserError(f"--space: there is no file {text}; did you mean --space {path.stem}?")
        return path
    for suffix in (".yaml", ".py"):
        if (path := SPACES / f"{text}{suffix}").is_file():
            return path
    known = space_names()
    hint = did_you_mean(text, known)
    raise UserError(f"--space: there is no search space {text!r}; {hint}known: {', '.join(known)}, or a file")


def _space(
    path: Path, keys: _Keys, place: Place, base: RunConfig, drawing: Drawing, overrides: Mapping[str, Any]
) -> SearchSpace:
    """The whole space, checked."""
    common = with_values(base, dict(overrides))
    objectives = _objectives(keys, place.at("objectives"), common, drawing.described())
    if (known := drawing.fields()) is not None:
        for number, point in enumerate(keys.first_points):
            for name in point:
                if name not in known:
                    place.at("first_points", number, name).fail(unknown_key(name, known))
    space = SearchSpace(
        name=path.stem,
        source=path,
        objectives=objectives,
        sampler=keys.sampler,
        scheduler=_scheduler(keys.scheduler, place.at("scheduler"), common.optim.steps, len(objectives)),
        trials=keys.trials,
        overrides=overrides,
        drawing=drawing,
        fixed=values_of(common),
        budget_hours=keys.budget_hours,
        samples_factor=keys.samples_factor,
        preset_samples=base.optim.steps * base.optim.batch_size,
        wanted_points=(*keys.first_points, *drawing.candidates(base)),
    )
    # Of interest to a user who has set one of these fields by a flag.
    shared = ", ".join(f"{name} {value}" for name, value in overrides.items())
    notes = [f"set by the space for all trials: {shared}"] if overrides else []
    notes += [*drawing.notes, *_check_first_points(space, place, base, len(keys.first_points))]
    most_updates, samplings = _check_edges(space, base)
    return replace(space, notes=tuple(notes), most_updates=most_updates, samplings=samplings)


def _overrides(keys: _Keys, place: Place, base: RunConfig) -> dict[str, Any]:
    """{field: value}; `{share: 0.15, of: FIELD}` is a part of another field's value, at least 1 where that is whole.

    The other field may be overridden itself, above.
    """
    values = values_of(base)
    overrides = {}
    for name, value in keys.overrides.items():
        if name not in values:
            place.at(name).fail(unknown_field(name, RunConfig).partition(": ")[2])
        if name in OF_THE_SWEEP or is_foreign(name, "train_global"):
            place.at(name).fail("is no setting of a trial; leave it out")
        if isinstance(value, Mapping) and "share" in value:
            part = validated(_Share, value, place.at(name))
            whole = values.get(part.of)
            if isinstance(whole, bool) or not isinstance(whole, int | float):
                place.at(name, "of").fail(f"{part.of!r} is no field with a number; for example optim.steps")
            value = max(1, round(part.share * whole)) if isinstance(whole, int) else part.share * whole
        overrides[name] = values[name] = value
    try:
        with_values(base, overrides)
    except UserError as error:
        _blame(error, place, overrides)
    return overrides


def _objectives(keys: _Keys, place: Place, config: RunConfig, parameters: Mapping[str, str]) -> tuple[Objective, ...]:
    known = reported_metrics(config)
    found: list[Objective] = []
    for number, objective in enumerate(keys.objectives):
        metric, here = objective.metric, place.at(number, "metric")
        if "/held_out/" in metric:
            if not config.rewards.held_out:
                here.fail(f"{metric}: rewards.held_out names none; give it one, or another metric")
            metric = metric.replace("/held_out/", f"/{full_name(config.rewards.held_out[0])}/")
        if metric not in known:
            hint = did_you_mean(metric, known)
            here.fail(f"no trial reports {metric}; {hint}known: eval/METHOD/SCORE/mean, such as {known[0]}")
        if f"/{REWARD}" in metric and any(name.startswith("rewards.train") for name in parameters):
            here.fail(f"{metric} is a sum by the weights searched over; judge by a single reward")
        if any(metric == other.metric for other in found):
            here.fail(f"{metric} is given twice; leave one of the two out")
        found.append(Objective(metric=metric, direction=objective.direction))
    return tuple(found)


def _scheduler(said: _Scheduler | None, place: Place, steps: int, objectives: int) -> SchedulerConfig:
    """With `grace` as a number of updates."""
    said = said or _Scheduler(name="asha" if objectives == 1 else "none")
    if objectives > 1 and said.name != "none":
        place.fail(f"{said.name} stops trials by one objective, and there are {objectives}; give none")
    grace = said.grace
    if grace <= 0 or grace > steps or (grace >= 1 and not grace.is_integer()):
        place.at("grace").fail(
            f"{grace:g} is neither a number of the {steps} updates nor a share of them; for example 0.15"
        )
    updates = int(grace) if grace >= 1 else max(1, round(grace * steps))
    return SchedulerConfig(said.name, updates, said.reduction_factor, said.min_trials)


def _check_first_points(space: SearchSpace, place: Place, base: RunConfig, given: int) -> list[str]:
    """The preset's settings are a point, or near one, and those of the file are points. Returns notes."""
    values = values_of(base)
    start = _nearest_point(space, values, space.drawing.place, "the preset's own settings, which are the first trial")
    if start.unwanted:
        place.at(DEFAULTS).fail(
            f"what are the preset's own settings for {start.unwanted[0]!r}? "
            f"For example DEFAULTS = {{{start.unwanted[0]!r}: {start.params[start.unwanted[0]]!r}}}"
        )
    notes = [
        f"{name}: the preset's {shown_value(wanted)} is outside the space, so the first trial has {shown_value(inside)}"
        for name, (wanted, inside) in start.moved.items()
    ]
    for number, wanted in enumerate(space.wanted_points[:given]):
        here = place.at("first_points", number)
        trial = _nearest_point(space, values | dict(wanted), here, shown_value(dict(wanted)))
        if moved := [name for name in trial.moved if name not in start.moved]:
            here.fail(f"{moved[0]} {shown_value(trial.moved[moved[0]][0])} is outside the space")
    return notes


def _nearest_point(space: SearchSpace, values: Values, place: Place, words: str) -> NearestTrial:
    try:
        trial = space.nearest_point(values)
        space.settings(trial.params)
    except OutsideSpace as error:
        place.fail(f"{words}: left out by the space: {error}")
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        place.fail(f"{words}: cannot be a point: {error}")
    return trial


def _check_edges(space: SearchSpace, base: RunConfig) -> tuple[int, tuple[SamplingConfig, ...]]:
    """Every mixture of the ends of ranges and of choices that the space does not leave out is a valid configuration.

    Returns the most updates of any, and all ways of sampling.
    """
    rng = random.Random(0)
    most, samplings = 0, []
    for number in range(_EDGES_TRIED):
        trial: AnsweringTrial = EdgeTrial(rng) if number else space.nearest_point(values_of(base))
        space.suggest(trial)
        with suppress(OutsideSpace):
            settings = space.settings(trial.params)
            try:
                config = with_values(base, dict(space.overrides) | settings)
            except UserError as error:
                _blame(error, space.drawing.place, settings)
            most = max(most, config.optim.steps)
            if config.sampling not in samplings:
                samplings.append(config.sampling)
    return most, tuple(samplings)


def _blame(error: UserError, place: Place, names: Mapping[str, Any]) -> None:
    """Raise the configuration's complaint about a value with the line of the file that gave it."""
    field, _, message = str(error).partition(": ")
    if field in names:
        place.at(field).fail(message)
    place.fail(str(error))
