"""What a sweep says while it runs."""

import pytest

from renege_ray.cluster.sweep.progress import SweepProgress
from renege_ray.cluster.sweep.trial import TrialTask
from renege_ray.config.run import load_preset
from renege_ray.sweeps.trial import TrialReport


@pytest.mark.parametrize(("running_at", "eta"), [(0, "5:00"), (90, "2:00"), (180, "2:00"), (45, "3:00")])
def test_what_runs_counts_for_the_time_that_is_left(running_at: int, eta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute one of six trials has ended, at 90 updates, and another is on its way."""
    now = [0.0]
    monkeypatch.setattr("renege_ray.cluster.sweep.progress.time.monotonic", lambda: now[0])
    said: list[str] = []
    progress = SweepProgress(6, 2, True, said.append)
    config = load_preset("toy")
    for name in ("first", "second"):
        progress.starts(name, TrialTask(name, config))
    progress.hears("second", TrialReport(running_at, (1.0,)))
    progress.hears("first", TrialReport(90, (2.0,)))
    now[0] = 60.0
    progress.ends("first", None)
    assert said[-1].endswith(f"running at {running_at}/180  ETA {eta}")
    assert "first stopped early at step 90 of 180, 2.0000; 1/6 trials  1 stopped early" in said[-1]
