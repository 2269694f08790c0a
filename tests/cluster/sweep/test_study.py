"""The study that a sweep lives by, and which trials it stops early; no Ray cluster."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from renege_ray.cluster.sweep.report import REASON
from renege_ray.cluster.sweep.storage import open_storage
from renege_ray.cluster.sweep.study import StudySearch, check_same_space
from renege_ray.cluster.sweep.trial import STATUS, STEP, TASK, TrialTask, objective_key
from renege_ray.config.run import RunConfig, load_preset
from renege_ray.errors import UserError
from renege_ray.sweeps.space import SchedulerConfig, SearchSpace, read_search_space

VALUE = objective_key(0)


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return load_preset("toy")


@pytest.fixture(scope="module")
def space(base: RunConfig) -> SearchSpace:
    return read_search_space("paper", base)


def start(space: SearchSpace, folder: Path, base: RunConfig, total: int) -> StudySearch:
    """The search as a start of a sweep makes it."""

    def make_task(number: int, point: Any) -> TrialTask:
        return TrialTask(str(number), space.config(base, point))

    return StudySearch(replace(space, trials=total), base.model_copy(update={"output_dir": folder}), make_task)


def test_states_and_reasons_and_the_count(space: SearchSpace, base: RunConfig, tmp_path: Path) -> None:
    """Finished, stopped, failed by itself, died, and killed with the driver: the next start knows which is which."""
    search = start(space, tmp_path, base, 6)
    assert search.missing() == 6
    first = [search.suggest(f"ray-{n}") for n in range(5)]
    assert first[0][TASK].config.optim.lr == base.optim.lr, "the preset's own settings come first"
    assert [search.judge(f"ray-{n}", {STEP: 15, VALUE: value}) for n, value in enumerate([3.0, 2.0])] == [False, True]
    search.on_trial_complete("ray-0", {STEP: 100, VALUE: 3.5, STATUS: "finished"})
    search.on_trial_complete("ray-1", {STEP: 15, VALUE: 2.0, STATUS: ""})
    search.note("ray-2", **{REASON: "step 3: nan"})
    search.on_trial_complete("ray-2", {STATUS: "failed"})
    search.on_trial_complete("ray-3", None, error=True)  # Ray says no reason here
    search.fail("ray-3", "its process died")
    search.judge("ray-4", {STEP: 15, VALUE: 2.5})

    again = start(space, tmp_path, base, 6)
    trials = again.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "RUNNING"]
    assert (trials[0].value, trials[1].value) == (3.5, 2.0)
    assert [trial.user_attrs.get(REASON) for trial in trials[2:4]] == ["step 3: nan", "its process died"]
    assert again.missing() == 2
    assert again.suggest("new-0") == first[4], "what was running goes on, with the same settings"
    assert not again.judge("new-0", {STEP: 15, VALUE: 2.4}), "what it tells again has been judged"
    assert again.study.trials[4].intermediate_values == {15: 2.5}
    assert again.suggest("new-1")[TASK].folder == "5"
    assert again.suggest("new-2") == StudySearch.FINISHED
    assert len(again.study.trials) == 6
    assert optuna.get_all_study_names(open_storage(tmp_path)) == [again.study.study_name]


def test_points_outside_the_space_cost_no_trial(base: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "narrow.py"
    file.write_text(
        "from renege_ray.sweeps.space import OutsideSpace\n"
        "TRIALS = 5\n"
        "def space(trial):\n"
        "    if trial.suggest_float('optim.lr', 0.1, 2.0) > 1.0:\n"
        "        raise OutsideSpace('optim.lr <= 1.0 is not met')\n"
    )
    space = read_search_space(file, base)
    search = start(space, tmp_path, base, 5)
    learning_rates = [search.suggest(f"ray-{n}")[TASK].config.optim.lr for n in range(5)]
    assert max(learning_rates) <= 1.0 and search.suggest("ray-5") == StudySearch.FINISHED
    outside = [trial for trial in search.study.trials if trial.state == TrialState.FAIL]
    assert outside and all("optim.lr <= 1.0" in trial.user_attrs[REASON] for trial in outside)
    assert len(search.trials()) == 5


def test_a_hopeless_sweep_is_given_up(space: SearchSpace, base: RunConfig, tmp_path: Path) -> None:
    search = start(space, tmp_path, base, 100)
    begun = 0
    while search.suggest(f"ray-{begun}") != StudySearch.FINISHED:
        search.note(f"ray-{begun}", **{REASON: "no memory"})
        search.on_trial_complete(f"ray-{begun}", {STATUS: "failed"})
        begun += 1
    assert begun < 20 and search.problem


def test_another_space_is_refused(space: SearchSpace, base: RunConfig, tmp_path: Path) -> None:
    start(space, tmp_path, base, 2)
    check_same_space(tmp_path, space)
    other = read_search_space("paper", base.model_copy(update={"optim": base.optim.model_copy(update={"lr": 0.1})}))
    with pytest.raises(UserError, match=r"another space: parameters\.optim\.lr is .* in the stored sweep"):
        check_same_space(tmp_path, other)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_later_start_stops_what_the_first_one_would(
    name: str, space: SearchSpace, base: RunConfig, tmp_path: Path
) -> None:
    """Nine trials end; the search that saw them, and one of a later start, judge further ones alike."""
    space = replace(space, sampler="random", scheduler=SchedulerConfig(name, grace=10, reduction_factor=3))
    (tmp_path / "first").mkdir()
    first = start(space, tmp_path / "first", base, 24)
    before = [stopped_at(first, (7 * number) % 9) for number in range(9)]
    shutil.copytree(tmp_path / "first", tmp_path / "later")
    later = start(space, tmp_path / "later", base, 24)
    decisions = [[stopped_at(search, worth) for worth in (0, 8, 4, 6)] for search in (first, later)]
    assert decisions[0] == decisions[1]
    assert all({None, 10} <= set(stops) for stops in (before, decisions[0]))


def stopped_at(search: StudySearch, worth: float) -> int | None:
    """The update that a further trial is stopped at; None where it makes all of them."""
    name = f"ray-{len(search.trials())}"
    search.suggest(name)
    for step in (0, 10, 20, 30):
        status = "finished" if step == 30 else ""
        result = {STEP: step, VALUE: worth + step / 100, STATUS: status}
        if (stop := search.judge(name, result)) or status:
            search.on_trial_complete(name, result)
            return step if stop else None
    raise AssertionError("unreachable")


def test_successive_halving_and_the_median_by_hand(space: SearchSpace, base: RunConfig, tmp_path: Path) -> None:
    """Of three at a rung one goes on, before there are three the best; three that finish are enough for a median."""
    for name, expected in (("asha", [None, 10, 10, None, 10, None]), ("median", [None, None, None, None, 10, None])):
        (tmp_path / name).mkdir()
        judging = replace(space, scheduler=SchedulerConfig(name, grace=10, reduction_factor=3, min_trials=3))
        search = start(judging, tmp_path / name, base, 6)
        assert [stopped_at(search, worth) for worth in (3, 1, 2, 4, 0, 5)] == expected
