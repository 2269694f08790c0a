"""What a trial of a sweep tells, whatever of it was lost on its way when its process was killed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from renege_ray.cluster.session.resources import TrialShape
from renege_ray.cluster.sweep.trial import SweepJob, TrialCheckpoints, TrialTask
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.sampling.workers import Workers
from renege_ray.sweeps.trial import TrialMemory, TrialReport, TrialReporter
from renege_ray.training.inputs import Inputs
from renege_ray.training.state import TrainingState
from renege_ray.training.train import train_global
from tests.training.test_train import PROMPTS, make_config, make_rewards

OBJECTIVES = ("eval/global/reward/mean",)


class Killed(Exception):
    """Stands for SIGKILL: nothing after it is done."""


@pytest.mark.parametrize("killed_at", [2, 4, 6])
@pytest.mark.slow
def test_all_is_told_again(tiny_pipeline: Callable[..., Any], tmp_path: Path, killed_at: int) -> None:
    """Killed after any checkpoint, with every report lost: the next process tells all, as one that was never killed."""
    model = StableDiffusion(tiny_pipeline(prediction_type="v_prediction"), "tiny")
    config = make_config(tmp_path)
    job = SweepJob(config, Inputs(PROMPTS, None, ()), str(tmp_path), OBJECTIVES, TrialShape(1, 1, 1.0, 0.0))
    checkpoints = TrialCheckpoints(job, TrialTask("trials/0000", config), Workers())

    def run(save: Callable[[TrainingState, TrialMemory], None], resume: TrainingState | None) -> list[TrialReport]:
        told: list[TrialReport] = []
        reporter = TrialReporter(config, OBJECTIVES, told.append, save)
        if resume is not None:
            reporter.go_on(checkpoints.memory(resume))
        result = train_global(config, model, make_rewards(), PROMPTS, resume=resume, report=reporter.report, test=False)
        reporter.end(result, {}, {})
        return told

    def save_and_die(state: TrainingState, memory: TrialMemory) -> None:
        checkpoints.save(state, memory)
        if state.step == killed_at:
            raise Killed

    whole = run(lambda state, memory: None, None)
    with pytest.raises(Killed):
        run(save_and_die, None)
    again = run(checkpoints.save, checkpoints.newest()[0])
    assert [report.step for report in again] == [report.step for report in whole] == [0, 2, 4, 6]
    assert without_times(again) == without_times(whole)
    pictured = [report.step for report in again if report.picture is not None]
    assert pictured == [step for step in (2, 4, 6) if step >= killed_at], "the last report has its picture still"


def without_times(reports: Sequence[TrialReport]) -> list[TrialReport]:
    """What does not differ from one run to the next."""

    def steady(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if not name.startswith("perf/")}

    return [
        replace(
            report,
            curves=tuple((step, steady(metrics)) for step, metrics in report.curves),
            picture=None,
            seconds=0.0,
            metrics=steady(report.metrics),
        )
        for report in reports
    ]
