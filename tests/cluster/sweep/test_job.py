"""Sweeps on Ray Tune with the embedded model: killed drivers, failing trials, trials of several workers."""

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import ray.tune
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState
from ray import cloudpickle

from renege_ray.cluster.sweep.trial import TASK, SweepJob, as_result, with_reasons
from renege_ray.config.cli import from_args
from renege_ray.config.run import load_preset, read_config
from renege_ray.errors import UserError
from renege_ray.method.embedding import NegativeEmbedding
from renege_ray.models.load import load_model
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.sweeps.trial import TrialError, TrialReport
from renege_ray.training.inputs import read_inputs
from renege_ray.training.train import Progress, train_global
from tests.cluster.killing import job, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STEPS, TRIALS = 6, 6
FLAGS = [
    "--optim.steps", str(STEPS), "--optim.batch-size", "4", "--optim.gradients-per-rollout", "1",
    "--sampling.num-inference-steps", "4", "--sampling.gradient-steps", "0,3", "--rewards.judges", "[]",
    "--validation.every", "2", "--validation.num-prompts", "2", "--validation.num-images", "1", "--test.num-pairs", "4",
    "--cluster.cpus-per-worker", "1",
]  # fmt: skip
SPACE = """
parameters: {FIELD: {distribution: loguniform, low: LOW, high: HIGH}}
objectives: [{metric: eval/global/reward/mean, direction: maximize}]
scheduler: {name: asha, grace: 2, reduction_factor: 2}
trials: 6
"""


def write_space(path: Path, low: float = 0.05, high: float = 0.5, field: str = "optim.lr") -> Path:
    path.write_text(SPACE.replace("FIELD", field).replace("LOW", str(low)).replace("HIGH", str(high)))
    return path


def flags(folder: Path, *more: str) -> list[str]:
    return [*FLAGS, "--space", str(folder.parent / "space.yaml"), "--output-dir", str(folder), *more]


def sweep(given: list[str]) -> int:
    from renege_ray.cluster.sweep.job import run

    invocation = from_args(given, "sweep")
    return run(invocation.config, resume=invocation.resume)


def trials(folder: Path) -> list[FrozenTrial]:
    storage = f"sqlite:///{folder / 'study.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def child_runs(folder: Path, job: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    parent = json.loads((folder / "tracking.json").read_text())["run_id"]
    experiment = client.get_experiment_by_name("renege_ray")
    query = f"tags.mlflow.parentRunId = '{parent}' and tags.`renege_ray.job` = '{job}'"
    return list(client.search_runs([experiment.experiment_id], query))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--trials", "0"], "sweep.trials: 0 is not"),
        (["--budget-hours", "0"], "sweep.budget_hours: 0 is not"),
        (["--max-concurrent", "0"], "sweep.max_concurrent: 0 is not"),
        (["--space", "papers"], "paper"),
        (["--space", "rewards", "--scheduler", "asha"], "asha compares trials by one objective"),
        (["--workers-per-trial", "9"], "sweep.workers_per_trial: 9 is more than the 4 samples"),
        (["--optim.batch-size", "512", "--workers-per-trial", "500"], "do not fit the cluster"),
        (["--tuning.lr", "1"], "--tuning.lr: is a setting of another job"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    given: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("renege_ray.cluster.session.ray_session.uses_own_cluster", lambda: True)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        sweep([*FLAGS, "--output-dir", str(tmp_path / "run"), *given])
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invocation = from_args([*FLAGS, "--output-dir", str(tmp_path / "run"), "--trials", "5", "--dry-run"], "sweep")
    from renege_ray.cluster.sweep.job import run

    assert run(invocation.config, dry_run=True) == 0
    printed = capsys.readouterr().out
    for words in ("5 trials by tpe", "optim.lr: loguniform", "6 trainings to confirm", "nothing was started"):
        assert words in printed
    assert not (tmp_path / "run").exists()


def test_kills_lose_nothing_and_double_nothing(ray_cluster: str, tmp_path: Path) -> None:
    """In a trial's first steps, and between trials; then the same command to the end."""
    write_space(tmp_path / "space.yaml")
    folder = tmp_path / "run"
    given = flags(folder, "--max-concurrent", "2", "--confirm-seeds", "2")
    fewer = [*given, "--trials", str(TRIALS - 1)]

    def is_due(at_least: int, since: float) -> bool:
        """So many trials have ended, and one has made a checkpoint in this start and not ended."""
        ended = {path.parent for path in folder.glob("trials/*/summary.json")}
        with suppress(FileNotFoundError):  # an older checkpoint is removed
            states = folder.glob("trials/*/checkpoints/*/step-*/state.json")
            new = {path.parents[3] for path in states if path.stat().st_mtime > since}
            return len(ended) >= at_least and bool(new - ended)
        return False

    seen: dict[int, float | None] = {}
    for at_least in (0, 2):
        with job("sweep", fewer, folder, ray_cluster) as process:
            wait_for(partial(is_due, at_least, time.time()), process)
            os.kill(process.pid, signal.SIGKILL)
        for trial in trials(folder):
            if trial.state.is_finished():
                assert seen.setdefault(trial.number, trial.value) == trial.value, "a finished trial has changed"

    assert sweep(given) == 0, "a sweep can be made longer"
    done = trials(folder)
    assert [trial.number for trial in done] == list(range(TRIALS))
    assert {trial.state for trial in done} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(done[number].value == value for number, value in seen.items())
    check_mlflow(folder, done)
    check_steps(folder, done)
    check_results(folder, done)
    assert trials_own_value(folder / "trials" / "0000") == pytest.approx(done[0].value, abs=1e-6)


def check_mlflow(folder: Path, done: list[FrozenTrial], field: str = "optim.lr") -> None:
    """The study and MLflow tell of the same trials."""
    runs = {int(run.info.run_name): run for run in child_runs(folder, "sweep_trial")}
    assert sorted(runs) == [trial.number for trial in done] and len(child_runs(folder, "sweep_trial")) == len(done)
    for trial in done:
        run = runs[trial.number]
        assert run.info.status == "FINISHED"
        assert float(run.data.params[field]) == pytest.approx(trial.params[field])
        assert run.data.metrics["sweep/stopped_early"] == (trial.state == TrialState.PRUNED)


def check_steps(folder: Path, done: list[FrozenTrial]) -> None:
    """Each update of each trial is told once, however often the driver was killed."""
    for trial in done:
        lines = (folder / "trials" / f"{trial.number:04d}" / "metrics.jsonl").read_text().splitlines()
        told = [line["step"] for line in map(json.loads, lines) if "train/reward" in line["metrics"]]
        assert sorted(told) == list(range(1, trial.user_attrs["steps"] + 1))
        assert trial.state == TrialState.PRUNED or trial.user_attrs["steps"] == STEPS


def check_results(folder: Path, done: list[FrozenTrial]) -> None:
    """What a finished sweep leaves."""
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["job"], summary["status"]) == ("sweep", "finished")
    best = max((trial for trial in done if trial.state == TrialState.COMPLETE), key=lambda trial: trial.value)
    assert summary["metrics"]["best/trial"] == best.number
    assert summary["metrics"]["sweep/trials"] == TRIALS
    config = load_preset(folder / summary["artifacts"]["best_config"])
    assert config.optim.lr == pytest.approx(best.params["optim.lr"])
    text = (folder / "results.txt").read_text()
    if best.number == 0:
        assert "the preset's own settings are the best" in text
    else:
        assert summary["metrics"]["confirm/seeds"] == 2 and "95 % interval" in text
        assert len(child_runs(folder, "sweep_confirm")) == 4
    assert NegativeEmbedding.load(folder / "negative_embedding.safetensors").metadata.base_model == "toy"


def trials_own_value(folder: Path) -> float:
    """The best validation of a trial, trained again without Ray."""
    config, values = read_config(folder), []

    def note(progress: Progress) -> None:
        if progress.evaluation is not None:
            values.append(progress.evaluation.mean("global", "reward"))

    model, rewards = load_model(config.model), Rewards.load(config.rewards)
    train_global(config, model, rewards, read_inputs(config).prompts, report=note, test=False)
    return max(values)


def test_a_sweep_in_which_every_trial_fails(
    ray_cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_space(tmp_path / "space.yaml", 1e30, 1e35)
    assert sweep(flags(tmp_path / "run", "--trials", "3", "--max-concurrent", "1")) == 1
    assert "the first reason: step 3: 10 samples in a row" in capsys.readouterr().err
    done = trials(tmp_path / "run")
    assert [trial.state for trial in done] == [TrialState.FAIL] * 3
    assert all("had no finite reward" in trial.user_attrs["reason"] for trial in done)
    assert {run.info.status for run in child_runs(tmp_path / "run", "sweep_trial")} == {"FAILED"}


def deadly(given: dict[str, Any], job: SweepJob) -> None:
    """Instead of a training: the first trials end in all the ways that there are, before a rung could stop them."""
    number = int(Path(given[TASK].folder).name)

    def work() -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2:
            raise ValueError("a bug\nof two lines")
        ray.tune.report(as_result(TrialReport(1, (float(number),))))
        if number == 3:
            raise TrialError("step 2: the reward is nan")
        ray.tune.report(as_result(TrialReport(STEPS, (float(number),), status="finished")))

    with_reasons(work)


def test_whatever_becomes_of_a_trial_the_others_go_on(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("renege_ray.cluster.sweep.job.trial_in_process", deadly)
    write_space(tmp_path / "space.yaml")
    folder = tmp_path / "run"
    options = ["--trials", "5", "--confirm-seeds", "0", "--max-concurrent", "2", "--cluster.max-failures", "1"]
    assert sweep(flags(folder, *options)) == 0
    done = trials(folder)
    states = [trial.state.name for trial in done]
    assert states == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"] and done[4].value == 4.0
    reasons = [trial.user_attrs["reason"] for trial in done[1:4]]
    assert reasons[0].startswith("its process died")
    assert reasons[1:] == ["ValueError: a bug of two lines", "step 2: the reward is nan"]
    runs = {int(run.info.run_name): run.info.status for run in child_runs(folder, "sweep_trial")}
    assert runs == {0: "FINISHED", 1: "FAILED", 2: "FAILED", 3: "FAILED", 4: "FINISHED"}
    assert "its process died" in (folder / "leaderboard.txt").read_text()


def test_trials_of_two_workers_on_a_full_cluster(ray_cluster: str, tmp_path: Path) -> None:
    """Two at a time fill the cluster, and give their room to the next whether they finish or are stopped early. A
    signal ends the sweep soon, its trials' workers with it; they go on from where they were. Training in one process
    gives the same value.
    """
    # Guidance changes images from the start. The preset's is best here and the third trial's worst, in whatever order.
    write_space(tmp_path / "space.yaml", 1.05, 2.6, "sampling.guidance_scale")
    folder = tmp_path / "run"
    given = flags(folder, "--trials", "3", "--workers-per-trial", "2", "--confirm-seeds", "0")
    with job("sweep", given, folder, ray_cluster) as process:
        wait_for(lambda: bool(list(folder.glob("trials/*/checkpoints/*/step-*/state.json"))), process)
        process.terminate()
        assert process.wait(timeout=60) == 143
    free = ray.available_resources().get("CPU", 0.0)
    assert free == pytest.approx(4.0, abs=0.1), "workers outlive the sweep"

    assert sweep(given) == 0
    done = trials(folder)
    states = [trial.state for trial in done]
    assert len(states) == 3 and set(states) == {TrialState.COMPLETE, TrialState.PRUNED}
    check_mlflow(folder, done, "sampling.guidance_scale")
    check_steps(folder, done)
    first = next(trial for trial in done if trial.state == TrialState.COMPLETE)
    own = trials_own_value(folder / "trials" / f"{first.number:04d}")
    assert first.value == pytest.approx(own, abs=1e-4)
