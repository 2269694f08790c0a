"""Search spaces: every point is a valid configuration, the preset comes first, faults are named with their line."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from renege_ray.config.run import RunConfig, load_preset, with_values
from renege_ray.errors import UserError
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.rewards.toy import ToyJudge
from renege_ray.sampling.images import Evaluation, Pair
from renege_ray.sweeps.space import SPACES, OutsideSpace, read_search_space, space_names
from renege_ray.sweeps.space.metrics import METHODS, reported_metrics
from renege_ray.sweeps.space.read import spaces_folder

LR = "optim.lr: {distribution: loguniform, low: 0.01, high: 1.0}"


@pytest.fixture(scope="module")
def toy() -> RunConfig:
    """With numbers of its own where tests count with them, so that the preset may be tuned."""
    return with_values(load_preset("toy"), {"optim.lr": 0.3, "optim.steps": 100})


def written(folder: Path, text: str, name: str = "space.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def drawn(path: str | Path, base: RunConfig, count: int) -> list[dict[str, Any]]:
    """Points that Optuna draws at random."""
    space = read_search_space(path, base)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = []
    for _ in range(count):
        trial = study.ask()
        space.suggest(trial)
        points.append(dict(trial.params))
    return points


# The spaces of the project


@pytest.mark.parametrize("preset", ["toy", "sd15"])
@pytest.mark.parametrize("name", ["conditional", "full", "handwritten", "paper", "rewards"])
def test_a_space_of_the_project_has_no_invalid_point_and_begins_with_the_preset(name: str, preset: str) -> None:
    base = load_preset(preset)
    space = read_search_space(name, base)
    infeasible = 0
    for point in drawn(name, base, 60):
        try:
            space.config(base, json.loads(json.dumps(point)))  # validates; a stored point is as good as a fresh one
        except OutsideSpace as error:
            assert "not met" in str(error)
            infeasible += 1
    assert infeasible < 40
    assert infeasible == 0 or space.limits
    first = space.config(base, space.first_points(base)[0])
    if name != "handwritten":  # which candidate of the preset's is best, only a measurement can tell
        assert first == with_values(base, dict(space.overrides))


def test_what_a_space_sets_for_all_trials_is_said(toy: RunConfig) -> None:
    """Flags do not change it."""
    given = with_values(toy, {"validation.every": 7})
    space = read_search_space("paper", given)
    assert "set by the space for all trials: optim.steps 50, validation.every 8" in space.notes
    assert space.config(given, space.first_points(given)[0]).validation.every == 8


def test_every_space_of_the_project_is_tested() -> None:
    assert space_names() == ["conditional", "full", "handwritten", "paper", "rewards"]


def test_optuna_takes_the_first_points_as_they_are(toy: RunConfig) -> None:
    for name in space_names():
        space = read_search_space(name, toy)
        points = space.first_points(toy)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for point in points:
            study.enqueue_trial(point)
        for point in points:
            trial = study.ask()
            space.suggest(trial)
            assert trial.params == point


def test_the_paper_space_follows_the_preset() -> None:
    for preset in map(load_preset, ("toy", "sd15")):
        points = drawn("paper", preset, 200)
        rates = [point["optim.lr"] / preset.optim.lr for point in points]
        assert 0.1 <= min(rates) < 0.15
        assert 3 < max(rates) <= 4
        space = read_search_space("paper", preset)
        trial = space.config(preset, space.first_points(preset)[0])
        assert trial.optim.steps == preset.optim.steps // 2 == space.most_updates
        assert trial.validation.every == round(0.15 * trial.optim.steps) == space.scheduler.grace


def test_words_become_one_handwritten_candidate(toy: RunConfig) -> None:
    space = read_search_space("handwritten", toy)
    assert not space.needs_training
    assert read_search_space("paper", toy).needs_training
    texts = [space.config(toy, point).prompts.handwritten for point in space.first_points(toy)]
    assert ("blurry, out of focus",) in texts
    assert ("blurry, dark, washed out",) in texts
    nothing = dict.fromkeys(space.first_points(toy)[0], False)
    assert space.config(toy, nothing).prompts.handwritten == ("a circle",), "the first word of the list"


def test_a_range_of_steps_is_cut_at_the_end_of_the_sampler(tmp_path: Path, toy: RunConfig) -> None:
    path = written(
        tmp_path, "parameters: {sampling.gradient_steps: {distribution: range, first: [0, 19], width: [2, 20]}}"
    )
    space = read_search_space(path, with_values(toy, {"optim.gradients_per_rollout": 1}))

    def steps(first: int, width: int) -> list[int]:
        point = {"sampling.gradient_steps.first": first, "sampling.gradient_steps.width": width}
        return list(space.settings(point)["sampling.gradient_steps"])

    assert steps(3, 4) == [3, 7]
    assert steps(12, 15) == [12, 20]
    assert steps(19, 20) == [19, 20]


def test_distributions_draw_what_they_say(tmp_path: Path, toy: RunConfig) -> None:
    path = written(
        tmp_path,
        """parameters:
  optim.lr: {distribution: quniform, low: 0.1, high: 0.45, step: 0.1}
  optim.steps: {distribution: int, factor: [0.5, 2], log: true}
  optim.batch_size: {distribution: int, low: 4, high: 17, step: 4}
  optim.ema_decay: {distribution: uniform, low: 0, high: 0.9}
  optim.init: {distribution: categorical, choices: [null, handwritten]}
  optim.timestep_groups: {distribution: categorical, factors: [1, 2, 4]}
""",
    )
    points = drawn(path, toy, 300)
    space = read_search_space(path, toy)
    configs = [space.config(toy, point).optim for point in points]
    assert sorted({round(optim.lr, 9) for optim in configs}) == [0.1, 0.2, 0.3, 0.4]
    assert {optim.batch_size for optim in configs} == {4, 8, 12, 16}
    assert {optim.init for optim in configs} == {"null", "handwritten"}
    assert {optim.timestep_groups for optim in configs} == {1, 2, 4}
    steps = sorted(optim.steps for optim in configs)
    assert 50 <= steps[0] < steps[-1] <= 200
    assert 90 < steps[150] < 112  # the median of a logarithmic scale from 50 to 200 is 100, of an even one 125


def test_weights_of_several_rewards_are_searched_but_for_the_first(tmp_path: Path, toy: RunConfig) -> None:
    base = with_values(toy, {"rewards.train": {"toy": 1.0, "clip": 2.0, "hpsv2-v2.0": 1.0}})
    space = read_search_space("full", base)
    assert [name for name in space.parameters if "rewards" in name] == [
        "rewards.train.clip",
        "rewards.train.hpsv2-v2.0",
    ]
    point = space.first_points(base)[0] | {"rewards.train.hpsv2-v2.0": 0.5}
    assert space.config(base, point).rewards.train == {"toy": 1.0, "clip": 2.0, "hpsv2-v2.0": 0.5}
    path = written(tmp_path, "parameters: {rewards.train.*: {distribution: uniform, low: 1, high: 2}}")
    with pytest.raises(UserError, match="sum by the weights"):
        read_search_space(path, base)


def test_conditional_parameters_are_there_only_where_they_belong(toy: RunConfig) -> None:
    space = read_search_space("conditional", toy)
    kinds = {frozenset(point) for point in drawn("conditional", toy, 30)}
    assert kinds == {frozenset({"optim.init", "stride"}), frozenset({"optim.init", "optim.lr", "optim.drift_penalty"})}
    assert space.config(toy, {"optim.init": "null", "stride": 2.0}).optim.lr == pytest.approx(0.6)
    with pytest.raises(UserError, match=r"optim.drift_penalty: the search space conditional has no such parameter"):
        space.config(toy, {"optim.init": "null", "stride": 2.0, "optim.drift_penalty": 0.01})


# What trials report


def test_metrics_are_those_that_an_evaluation_has(toy: RunConfig) -> None:
    import torch

    scores = ("reward", "toy", "toy_held_out", *ToyJudge.names, *ImageStatistics.names)
    evaluation = Evaluation(
        (Pair("a", 0), Pair("b", 1)),
        {method: {score: torch.zeros(2).double() for score in scores} for method in METHODS},
    )
    assert set(reported_metrics(toy)) == set(evaluation.metrics())


# What a space leaves out


def test_samples_are_limited_by_the_presets(tmp_path: Path, toy: RunConfig) -> None:
    text = f"parameters:\n  {LR}\n  optim.steps: {{distribution: int, low: 50, high: 300}}\nsamples_factor: 1.5\n"
    space = read_search_space(written(tmp_path, text), toy)
    assert space.limits == ["optim.steps * optim.batch_size <= 1.5 * preset.optim.steps * preset.optim.batch_size"]
    assert space.config(toy, {"optim.lr": 0.1, "optim.steps": 150}).optim.steps == 150  # equal sides meet it
    with pytest.raises(
        OutsideSpace, match=r"optim.batch_size <= 1.5 \* .*: not met by \{optim.lr: 0.1, optim.steps: 151"
    ):
        space.config(toy, {"optim.lr": 0.1, "optim.steps": 151})
    assert space.most_updates <= 150


NARROW = """
from renege_ray.sweeps.space import OutsideSpace
OVERRIDES = {"optim.lr": 0.1}
def space(trial):
    lr, steps = trial.suggest_float("optim.lr", 0.1, 0.5), trial.suggest_int("optim.steps", 50, 150)
    if lr * steps > 40:
        raise OutsideSpace("too far")
"""


def test_the_function_of_a_space_leaves_points_out(tmp_path: Path, toy: RunConfig) -> None:
    space = read_search_space(written(tmp_path, NARROW, "narrow.py"), toy)
    assert space.config(toy, {"optim.lr": 0.4, "optim.steps": 100}).optim.lr == 0.4
    with pytest.raises(OutsideSpace, match="too far"):
        space.config(toy, {"optim.lr": 0.5, "optim.steps": 100})
    assert space.most_updates == 150


# Storing and comparing


def test_a_difference_is_named(tmp_path: Path, toy: RunConfig) -> None:
    space = read_search_space("paper", toy)
    stored = json.loads(json.dumps(space.to_mapping()))
    assert space.difference(stored) == ""
    text = (SPACES / "paper.yaml").read_text(encoding="utf-8")
    more = read_search_space(written(tmp_path, text.replace("trials: 24", "trials: 30"), "paper.yaml"), toy)
    assert more.difference(stored) == ""  # a sweep may be made longer
    assert more.fingerprint() == space.fingerprint()
    other = read_search_space(written(tmp_path, text.replace("[0.1, 4]", "[0.1, 5]")), toy)
    assert other.fingerprint() != space.fingerprint()
    assert "parameters.optim.lr is 'loguniform 0.03 to 1.2' in the stored sweep" in other.difference(stored)
    other = read_search_space(written(tmp_path, text.replace("sampler: tpe", "sampler: random")), toy)
    assert other.difference(stored).startswith("sampler is 'tpe' in the stored sweep, 'random' in ")


def test_a_preset_outside_the_space_is_taken_to_the_edge_and_told(tmp_path: Path, toy: RunConfig) -> None:
    path = written(tmp_path, "parameters: {optim.lr: {distribution: loguniform, low: 0.001, high: 0.01}}")
    space = read_search_space(path, toy)
    assert space.first_points(toy) == [{"optim.lr": 0.01}]
    assert "optim.lr: the preset's 0.3 is outside the space, so the first trial has 0.01" in space.notes


def test_first_points_are_settings(tmp_path: Path, toy: RunConfig) -> None:
    text = f"parameters:\n  {LR}\n  optim.betas: {{distribution: categorical, choices: [[0.9, 0.99], [0.5, 0.9]]}}\n"
    path = written(tmp_path, text + "first_points:\n  - {optim.lr: 0.1, optim.betas: [0.5, 0.9]}\n")
    space = read_search_space(path, toy)
    configs = [space.config(toy, point).optim for point in space.first_points(toy)]
    assert [(optim.lr, optim.betas) for optim in configs] == [(0.3, (0.9, 0.99)), (0.1, (0.5, 0.9))]


# Bad input

BAD = [
    ("", ["null is no map", "keys overrides,"]),
    ("- optim.lr", ["['optim.lr'] is no map", "parameters"]),
    ("parameters: {a: [", ["not valid YAML", "line 1"]),
    ("trials: 3", ["has no parameters"]),
    ("parameters: {}", ["line 1: parameters", "nothing to search over"]),
    ("parameters:\n  optim.learning_rate: {}", ["line 2: parameters.optim.learning_rate", "did you mean optim.lr?"]),
    ("parameters:\n  optim.lr: 3", ["line 2: parameters.optim.lr: 3 has no distribution"]),
    (
        "parameters:\n  optim.lr: {distribution: logunifrom}",
        ["line 2: parameters.optim.lr", "did you mean loguniform?"],
    ),
    ("parameters:\n  optim.lr: {distribution: uniform, low: 2, high: 1}", ["line 2", "2 is above high, 1"]),
    ("parameters:\n  optim.lr: {distribution: uniform, low: 2, hihg: 1}", ["line 2", "did you mean high?"]),
    ("parameters:\n  optim.lr: {distribution: uniform, low: 2}", ["line 2: parameters.optim.lr: has no high"]),
    ("parameters:\n  optim.lr: {distribution: loguniform, low: 0, high: 1}", ["line 2", "logarithmic scale has no 0"]),
    (
        "parameters:\n  optim.lr: {distribution: uniform, low: -1, high: 1}",
        ["line 2: parameters.optim.lr: -1", "above 0"],
    ),
    ("parameters:\n  optim.ema_decay: {distribution: uniform, factor: [1, 2]}", ["line 2", "cannot be scaled"]),
    (
        "parameters:\n  optim.steps: {distribution: uniform, low: 5, high: 9.5}",
        ["line 2: parameters.optim.steps", "whole"],
    ),
    ("parameters:\n  tuning.lr: {distribution: uniform, low: 1, high: 2}", ["line 2", "no effect"]),
    ("parameters:\n  seed: {distribution: int, low: 1, high: 2}", ["line 2: parameters.seed", "could not be compared"]),
    (
        "parameters:\n  sampling.gradient_steps: {distribution: range, first: [0, 6], width: [3, 21]}",
        ["line 2: parameters.sampling.gradient_steps.width: [3, 21]", "20 of sampling.num_inference_steps"],
    ),
    (
        "parameters:\n  sampling.gradient_steps: {distribution: range, first: [0, 6], width: [1, 4]}",
        ["line 1: parameters: optim.gradients_per_rollout: 2 is more than the 1 steps"],
    ),
    ("parameters:\n  optim.batch_size: {distribution: categorical, choices: [8, 8]}", ["line 2", "8 is given twice"]),
    ("parameters:\n  optim.batch_size: {distribution: categorical, factors: [a]}", ["line 2", "factors.0: 'a' is not"]),
    ("parameters:\n  optim.ema_decay: {distribution: categorical, factors: [1]}", ["line 2", "cannot be scaled"]),
    ("parameters:\n  optim.lr: {distribution: categorical}", ["line 2: parameters.optim.lr: takes either choices or"]),
    (
        "parameters:\n  optim.lr: {distribution: uniform, factor: [2, 1]}",
        ["line 2: parameters.optim.lr.factor: [2, 1]"],
    ),
    ("parameters:\n  optim.lr: {distribution: uniform, factor: [2]}", ["line 2: parameters.optim.lr.factor: [2]", "2"]),
    ("parameters:\n  optim.lr: {distribution: uniform, low: .nan, high: 1}", ["optim.lr.low: nan is not", "finite"]),
    ("parameters:\n  optim.lr: {distribution: uniform, low: 0, high: 1, step: 1}", ["line 2", "leave it out"]),
    ("parameters:\n  optim.lr: {distribution: quniform, low: 0, high: 1}", ["line 2", "has no step"]),
    ("parameters:\n  optim.steps: {distribution: int, low: 1, high: 2.5}", ["line 2", "int takes whole numbers"]),
    ("parameters:\n  optim.lr: {distribution: range, first: [0, 6], width: [1, 4]}", ["line 2", "takes another one"]),
    ("parameters:\n  prompts.handwritten: {distribution: words, choices: [1]}", ["line 2", "choices.0: 1 is not"]),
    (f"parameters:\n  {LR}\ntrials: 0", ["line 3: trials: 0 is not allowed", "greater than or equal to 1"]),
    (f"parameters:\n  {LR}\nbudget_hours: 0", ["line 3: budget_hours: 0 is not allowed", "greater than 0"]),
    (f"parameters:\n  {LR}\nsampler: cmaes", ["line 3: sampler: 'cmaes' is not known", "tpe"]),
    (f"parameters:\n  {LR}\nscheduler: hyperband", ["line 3: scheduler", "asha, median, none"]),
    (f"parameters:\n  {LR}\nscheduler: {{name: asha, grace: 101}}", ["line 3: scheduler.grace: 101"]),
    (
        f"parameters:\n  {LR}\nobjectives:\n  - metric: eval/global/toy_heldout/mean\n    direction: maximize",
        ["line 4: objectives.0.metric: no trial reports", "did you mean eval/global/toy_held_out/mean?"],
    ),
    (
        f"parameters:\n  {LR}\nobjectives:\n  - {{metric: eval/global/reward/mean, direction: up}}",
        ["line 4: objectives.0.direction: 'up' is not known"],
    ),
    (f"parameters:\n  {LR}\nconstraints: [optim.lr < 1]", ["line 3: constraints", "OutsideSpace", "samples_factor"]),
    (f"parameters:\n  {LR}\nsamples_factor: 0.5", ["line 1: parameters: the preset's own settings", "not met"]),
    (f"parameters:\n  {LR}\nsamples_factor: true", ["line 3: samples_factor: true is not allowed", "number"]),
    (f"parameters:\n  {LR}\nsmapler: tpe", ["line 3: smapler: there is no such key", "did you mean sampler?"]),
    (f"parameters:\n  {LR}\nobjectives: []", ["line 3: objectives: [] is not allowed", "at least 1 item"]),
    (f"parameters:\n  {LR}\nobjectives: [reward]", ["line 3: objectives.0: 'reward' is no map", "metric, direction"]),
    (f"parameters:\n  {LR}\nscheduler: {{name: asha, reduction_factor: 1}}", ["line 3: scheduler.reduction_factor: 1"]),
    (f"parameters:\n  {LR}\noverrides: 3", ["line 3: overrides: 3 is not allowed", "map"]),
    (
        f"parameters:\n  {LR}\noverrides: {{optim.steps: {{share: 0.5, fo: optim.lr}}}}",
        ["optim.steps.fo", "known: share, of"],
    ),
    (f"parameters:\n  {LR}\noverrides: {{optim.steps: {{share: 0.5, of: lr}}}}", ["optim.steps.of: 'lr' is no field"]),
    (f"parameters:\n  {LR}\noverrides:\n  optim.steps: 0", ["line 4: overrides.optim.steps: 0"]),
    (
        f"parameters:\n  {LR}\noverrides:\n  optim.stesp: 9",
        ["line 4: overrides.optim.stesp", "did you mean optim.steps?"],
    ),
    (f"parameters:\n  {LR}\noverrides: {{optim.lr: 1}}", ["line 2: parameters.optim.lr: is fixed in overrides"]),
    (f"parameters:\n  {LR}\nfirst_points:\n  - {{optim.lr: 3}}", ["line 4: first_points.0: optim.lr 3 is outside"]),
    (f"parameters:\n  {LR}\nfirst_points:\n  - {{optim.steps: 3}}", ["line 4: first_points.0.optim.steps"]),
    (
        "parameters:\n  sampling.gradient_steps: {distribution: range, first: [0, 6], width: [3, 9]}\n"
        "first_points:\n  - {sampling.gradient_steps: [1]}",
        ["line 4: first_points.0: {sampling.gradient_steps: [1]}: cannot be a point"],
    ),
    (f"parameters:\n  {LR}\n  {LR}", ["line 3", "given twice"]),
]


@pytest.mark.parametrize(("text", "parts"), BAD, ids=range(len(BAD)))
def test_faults_are_named_with_file_and_line(text: str, parts: list[str], tmp_path: Path, toy: RunConfig) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as raised:
        read_search_space(path, toy)
    message = str(raised.value)
    assert "\n" not in message
    for part in [str(path), *parts]:
        assert part in message


BAD_CODE = [
    ("def space(trial:\n", ["line 1: not valid Python"]),
    ("import nonsense_module", ["line 1: the file cannot be executed: ModuleNotFoundError"]),
    ("spaces = 1", ["has no function space(trial)"]),
    ("CONSTRAINTS = ['optim.lr < 1']\ndef space(trial):\n    pass", ["line 1: constraints", "raises", "OutsideSpace"]),
    (NARROW.replace("> 40", "> 4"), ["line 4: space: the preset's own settings", "too far"]),
    ("def space(trial):\n    return 1 / 0", ["line 2: space(trial) failed: ZeroDivisionError"]),
    ("def space(trial):\n    return [1]", ["line 1: space: returns list"]),
    ("def space(trial):\n    trial.suggest_float('optim.lrr', 0.1, 1)", ["line 1: space: optim.lrr", "mean optim.lr?"]),
    (
        "def space(trial):\n    trial.suggest_float('stride', 0.1, 1)",
        ["defaults: what are the preset's own", "'stride'"],
    ),
    ("def space(trial):\n    trial.suggest_float('optim.lr', -1, 1)", ["line 1: space", "above 0"]),
    ("\nTRIALS = 0\ndef space(trial):\n    trial.suggest_float('optim.lr', 0.1, 1)", ["line 2: trials: 0"]),
    (
        "\nTRAILS = 3\ndef space(trial):\n    trial.suggest_float('optim.lr', 0.1, 1)",
        ["line 2: trails", "mean trials?"],
    ),
]


@pytest.mark.parametrize(("text", "parts"), BAD_CODE, ids=range(len(BAD_CODE)))
def test_faults_of_a_python_space_are_named(text: str, parts: list[str], tmp_path: Path, toy: RunConfig) -> None:
    path = written(tmp_path, text, "space.py")
    with pytest.raises(UserError) as raised:
        read_search_space(path, toy)
    for part in [str(path), *parts]:
        assert part in str(raised.value)


def test_a_space_that_is_not_there(tmp_path: Path, toy: RunConfig) -> None:
    with pytest.raises(UserError, match=r"no search space 'papr'; did you mean paper\?"):
        read_search_space("papr", toy)
    with pytest.raises(UserError, match="there is no such file"):
        read_search_space(tmp_path / "space.yaml", toy)


def test_spaces_travel_in_a_wheel(tmp_path: Path) -> None:
    """They lie in the package there; in a checkout at its top, where they are now."""
    room = tmp_path / "renege_ray" / "sweeps"
    assert spaces_folder(room) == tmp_path / "search_spaces"
    (room / "search_spaces").mkdir(parents=True)
    assert spaces_folder(room) == room / "search_spaces"


def test_several_objectives_are_not_stopped_by_one(tmp_path: Path, toy: RunConfig) -> None:
    text = (SPACES / "rewards.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"scheduler: asha stops trials by one objective, and there are 2; give none"):
        read_search_space(written(tmp_path, text.replace("scheduler: none", "scheduler: asha")), toy)
