"""A sweep of many trials that cost nothing: does a trial take longer, or the driver more memory, as they add up?

    python -m benchmarks.bench_sweep_overhead [TRIALS]

Ray Tune, the study on disk, its pruner and all files of a trial are as in a real sweep; only the training is not.
"""

import resource
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from renege_ray.cluster.session import ray_session as session  # first: it sets up Ray's environment
from renege_ray.cluster.session.resources import TrialShape
from renege_ray.cluster.sweep.job import run_on_tune
from renege_ray.cluster.sweep.progress import SweepProgress
from renege_ray.cluster.sweep.study import EarlyStop, StudySearch
from renege_ray.cluster.sweep.trial import TASK, SweepJob, TrialTask, as_result, trial_folder
from renege_ray.cluster.sweep.watch import TrialWatch
from renege_ray.cluster.tracking.runs import open_run
from renege_ray.config.run import load_preset
from renege_ray.sweeps.space import read_search_space
from renege_ray.sweeps.trial import TrialReport
from renege_ray.training.inputs import read_inputs

REPORTS = 4


def cheap_trial(given: dict[str, Any], job: SweepJob) -> None:
    """A bowl around lr 0.3 and guidance 3, told in a few reports."""
    import ray.tune

    config = given[TASK].config
    worth = -((config.optim.lr - 0.3) ** 2) - (config.sampling.guidance_scale - 3) ** 2
    for place in range(1, REPORTS + 1):
        step = place * config.optim.steps // REPORTS
        status = "finished" if place == REPORTS else ""
        curves = tuple((s, {"train/reward": worth}) for s in range(step - 5, step))
        ray.tune.report(as_result(TrialReport(step, (worth * (2 - place / REPORTS),), curves, status=status)))


def main(trials: int = 200) -> float:
    """Print seconds a trial and the driver's memory by quarters; returns the last quarter's time over the second's."""
    times: list[float] = []
    memory: list[float] = []

    class Clock(SweepProgress):
        def ends(self, trial_id: str, report: TrialReport | None) -> int:
            times.append(time.monotonic())
            memory.append(resident_mib())
            return super().ends(trial_id, report)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sweep"
        folder.mkdir()
        base = load_preset("toy").model_copy(update={"output_dir": folder})
        space = replace(read_search_space("paper", base), trials=trials)
        shape = TrialShape(2, 1, 1.0, 0.0)
        job = SweepJob(base, read_inputs(base), str(folder), (space.objectives[0].metric,), shape)

        def task(number: int, point: Any) -> TrialTask:
            return TrialTask(trial_folder(number), space.config(base, point))

        search = StudySearch(space, base, task)
        with (
            session.shaped_session(base.cluster, lambda nodes, autoscaled: shape),
            open_run(folder, job="bench", experiment="bench", params={}) as log,
        ):
            started = time.monotonic()
            progress = Clock(trials, shape.concurrent, True, lambda line: None)
            watch = TrialWatch(folder, log, progress, search)
            run_on_tune(job, trials, watch, search, EarlyStop(search), cheap_trial)
            log.finish("finished")
    quarter = len(times) // 4
    edges = [started, *times[quarter - 1 :: quarter][:4]]
    a_trial = [(after - before) / quarter for before, after in pairwise(edges)]
    mebibytes = [fmean(memory[place * quarter : (place + 1) * quarter]) for place in range(4)]
    print("seconds a trial by quarters: " + ", ".join(f"{seconds:.3f}" for seconds in a_trial))
    print("memory of the driver by quarters, MiB: " + ", ".join(f"{mean:.0f}" for mean in mebibytes))
    return a_trial[3] / a_trial[1]


def resident_mib() -> float:
    """Memory of this process in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
