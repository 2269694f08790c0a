"""The report of a sweep, on small studies in memory with a cheap function in place of a training; no Ray."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from renege_ray.cluster.sweep.report import best_trial, objective_label, trial_rows, write_sweep_report
from renege_ray.config.run import RunConfig, load_preset, with_values
from renege_ray.sweeps.space import SearchSpace, read_search_space

REASON = "TrainingError: step 7: 10 samples in a row had no finite reward"
PNG_WIDTH = 500


def worth(config: RunConfig) -> float:
    """Highest at lr 0.4 and guidance 2.8."""
    return 3 - 0.1 * math.log(config.optim.lr / 0.4) ** 2 - 0.4 * (config.sampling.guidance_scale - 2.8) ** 2


def swept(name: str, trials: int, seed: int = 0) -> tuple[optuna.Study, SearchSpace, RunConfig]:
    """Trial 3 fails, every third from the fifth is stopped early, the others finish, and one still runs."""
    base = load_preset("toy")
    space = read_search_space(name, base)
    study = optuna.create_study(
        directions=[objective.direction for objective in space.objectives], sampler=optuna.samplers.RandomSampler(seed)
    )
    for point in space.first_points(base):
        study.enqueue_trial(point)
    several = len(space.objectives) > 1
    for number in range(trials):
        trial = study.ask()
        space.suggest(trial)
        value = worth(space.config(base, trial.params))
        if number == 3:
            trial.set_user_attr("reason", REASON)
            study.tell(trial, state=TrialState.FAIL)
            continue
        for name, fact in (("steps", 15 if number % 3 == 2 else 100), ("seconds", 60.5)):
            trial.set_user_attr(name, fact)
        if several:
            study.tell(trial, [value, trial.params["optim.lr"]])
        elif number % 3 == 2:
            for step, gained in ((0, 0.0), (10, 0.9), (15, 0.8)):
                trial.report(2 + gained * (value - 2), step)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.report(value, 100)
            study.tell(trial, value)
    space.suggest(study.ask())  # still running
    return study, space, base


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Any:
    study, space, base = swept("paper", 14)
    folder = tmp_path_factory.mktemp("sweep")
    return study, space, base, folder, write_sweep_report(study, space, base, folder)


def test_the_best_configuration_is_a_preset(paper: Any) -> None:
    study, space, base, _, files = paper
    finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    best = max(finished, key=lambda trial: trial.value)
    config = load_preset(files["best_config"])
    assert worth(config) == pytest.approx(best.value)
    drawn = space.settings(best.params)
    assert config == with_values(base, dict(space.overrides) | drawn)
    assert f"Trial {best.number} of a sweep over paper" in files["best_config"].read_text(encoding="utf-8")


def test_the_leaderboard_has_every_trial_with_its_end(paper: Any) -> None:
    study, _, _, _, files = paper
    with files["leaderboard_csv"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["trial"]) for row in rows) == list(range(15))
    states = [row["state"] for row in rows]
    assert states == ["finished"] * 9 + ["stopped early"] * 4 + ["failed", "running"]
    values = [float(row["eval/global/reward/mean"]) for row in rows[:9]]
    finished = [trial.value for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert values == sorted(finished, reverse=True)
    assert [row["best"] for row in rows] == ["True"] + ["False"] * 14
    stopped = next(row for row in rows if row["trial"] == "2")
    assert float(stopped["eval/global/reward/mean"]) == max(study.trials[2].intermediate_values.values())
    assert (stopped["steps"], stopped["seconds"]) == ("15", "60.5")
    assert next(row for row in rows if row["state"] == "failed")["reason"] == REASON
    text = files["leaderboard"].read_text(encoding="utf-8")
    assert "0 (preset)" in text
    assert "failed: TrainingError: step 7" in text
    assert "left out" not in text


def test_every_figure_is_there_as_a_picture_and_on_the_page(paper: Any) -> None:
    *_, folder, files = paper
    figures = ["history", "curves", "importance", "slice", "parallel", "contour"]
    for name in figures:
        with Image.open(files[f"sweep_{name}"]) as picture:
            picture.verify()
            assert min(picture.size) > PNG_WIDTH
    page = files["sweep_report"].read_text(encoding="utf-8")
    assert page.count('class="plotly-graph-div"') == len(figures)
    assert not re.search(r"<script[^>]*\bsrc=|<link[^>]*href=.http", page)  # nothing from the network
    assert "lr against guidance_scale" in page
    assert not list(folder.rglob(".*"))  # no temporary file is left


@pytest.mark.slow
def test_several_objectives_make_a_pareto_front(tmp_path: Path) -> None:
    study, space, base = swept("rewards", 12)
    points = {trial.number: trial.values for trial in study.trials if trial.state == TrialState.COMPLETE}
    front = {
        number
        for number, own in points.items()
        if not any(o != own and all(a >= b for a, b in zip(o, own, strict=True)) for o in points.values())
    }
    assert {row.number for row in trial_rows(study, space) if row.best} == front
    chosen = best_trial(study)
    assert chosen is not None
    assert chosen.number in front
    files = write_sweep_report(study, space, base, tmp_path)
    assert "sweep_pareto_front" in files
    assert "sweep_slice_global-reward" in files
    assert "sweep_slice_global-toy_held_out" in files
    assert load_preset(files["best_config"]).optim.lr == chosen.params["optim.lr"]


def test_the_middle_of_a_front_is_chosen() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for values in ([0.0, 0.0], [80.0, 0.3], [100.0, 1.0], [70.0, 0.9]):
        study.add_trial(optuna.trial.create_trial(values=values))
    best = best_trial(study)
    assert best is not None
    assert best.values == [80.0, 0.3]


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_too_few_trials_cost_figures_and_nothing_else(trials: int, tmp_path: Path) -> None:
    study, space, base = swept("conditional", trials)
    files = write_sweep_report(study, space, base, tmp_path)
    assert ("best_config" in files) == (trials > 0)
    assert not [name for name in files if name in {"sweep_history", "sweep_importance", "sweep_slice"}]
    assert "importance of the parameters: global reward: left out" in files["leaderboard"].read_text(encoding="utf-8")
    assert len(trial_rows(study, space)) == trials + 1


def test_trials_that_all_have_the_same_value(tmp_path: Path) -> None:
    study, space, base = swept("handwritten", 8)
    assert len({trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}) == 1
    files = write_sweep_report(study, space, base, tmp_path)
    assert {"best_config", "leaderboard", "sweep_report", "sweep_history"} <= set(files)
    assert load_preset(files["best_config"]).prompts.handwritten


def test_objectives_have_short_labels() -> None:
    assert objective_label("eval/global/toy_held_out/mean") == "global toy_held_out"
    assert objective_label("eval/global/win_rate_vs_null/reward") == "global win rate vs null reward"
