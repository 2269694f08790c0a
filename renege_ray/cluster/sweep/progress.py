"""Where a sweep is: a line for each trial that ends, how long the rest will take, and what was spent on what."""

import time
from collections.abc import Callable

from renege_ray.cluster.sweep.trial import TrialTask
from renege_ray.output.console import say
from renege_ray.output.progress import duration
from renege_ray.sweeps.trial import TrialReport

SECONDS_BETWEEN_LINES = 15.0


class SweepProgress:
    """Prints a line for each trial that ends, and one now and then; counts what was computed.

    Attributes:
        done, stopped, failed: trials that ended; of these, stopped early, and failed.
        seconds: that trials have computed. slot_seconds: that there was room for trials and trials to run: what is
            more in them than `seconds` went into starting and waiting. load_seconds: of loading models, in these.
    """

    def __init__(self, total: int, concurrent: int, maximise: bool | None, say: Callable[[str], None] = say) -> None:
        """`total`: trials to run in this start, `concurrent` at a time. `maximise`: whether more of the first objective
        is better; None where trials do not compete. `say`: prints a line.
        """
        self._total, self._concurrent, self._maximise, self._say = total, concurrent, maximise, say
        self._started = self._last_line = self._last_event = time.monotonic()
        self._running: dict[str, tuple[TrialTask, TrialReport | None]] = {}
        self._best: tuple[float, str] | None = None
        self.done = self.stopped = self.failed = self._updates = 0
        self.seconds = self.slot_seconds = self.load_seconds = 0.0

    def metrics(self) -> dict[str, float]:
        """Figures of this start for summary.json; none where no trial ran."""
        if not self.seconds:
            return {}
        return {
            "perf/trial_seconds": self.seconds,
            "perf/wall_seconds": self._last_event - self._started,
            "perf/load_seconds": self.load_seconds,
            "perf/overhead": self.slot_seconds / self.seconds - 1,
        }

    def live_metrics(self) -> dict[str, float]:
        """What MLflow shows while the sweep goes on."""
        best = {} if self._best is None else {"sweep/best": self._best[0]}
        return best | {"sweep/stopped_early": float(self.stopped), "sweep/failed": float(self.failed)}

    def starts(self, trial_id: str, task: TrialTask) -> None:
        """A trial begins, or goes on."""
        self._count_slots()
        self._running[trial_id] = task, None

    def hears(self, trial_id: str, report: TrialReport) -> None:
        """A trial has been validated, or has ended."""
        task, _ = self._running[trial_id]
        self._running[trial_id] = task, report
        if report.values and self._is_best(report.values[0]):
            self._best = report.values[0], task.folder
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES and not report.status:
            self._print("")

    def ends(self, trial_id: str, report: TrialReport | None) -> int:
        """A trial is over; no report: it was stopped early. Returns the updates that it has made."""
        self._count_slots()
        task, latest = self._running.pop(trial_id)
        failed = report is not None and report.status == "failed"
        self.done, self.stopped, self.failed = self.done + 1, self.stopped + (report is None), self.failed + failed
        if latest is not None:
            self.seconds += latest.seconds
            self.load_seconds += latest.load_seconds
        step = _updates_of(latest)
        self._updates += step
        how = "stopped early" if report is None else report.status
        value = f", {latest.values[0]:.4f}" if latest and latest.values else ""
        reason = f": {report.reason}" if report is not None and failed else ""
        self._print(f"{task.folder} {how} at step {step} of {task.config.optim.steps}{value}{reason}; ")
        return step

    def _count_slots(self) -> None:
        """Up to now, all places have counted as long as there was a trial for each, and then those that had one."""
        now, waiting = time.monotonic(), self._total - self.done - len(self._running)
        places = min(self._concurrent, len(self._running) + waiting)
        self.slot_seconds += (now - self._last_event) * places
        self._last_event = now

    def _is_best(self, value: float) -> bool:
        if self._maximise is None:
            return False
        return self._best is None or (value > self._best[0] if self._maximise else value < self._best[0])

    def _print(self, news: str) -> None:
        self._last_line = now = time.monotonic()
        pieces = [f"{self.done}/{self._total} trials", f"{self.stopped} stopped early", f"{self.failed} failed"]
        if self._best is not None:
            pieces.append(f"best {self._best[0]:.4f} ({self._best[1]})")
        if self._running:
            steps = (f"{_updates_of(report)}/{task.config.optim.steps}" for task, report in self._running.values())
            pieces.append(f"running at {', '.join(steps)}")
        if self.done:
            pieces.append(f"ETA {duration((now - self._started) / self._worth() * (self._total - self._worth()))}")
        self._say(news + "  ".join(pieces))

    def _worth(self) -> float:
        """Trials that are done, those that run as the share that they have of the updates of one that has ended."""
        usual = self._updates / self.done
        running = (_updates_of(report) for _, report in self._running.values())
        return self.done + sum(min(1.0, updates / usual) for updates in running if usual)


def _updates_of(report: TrialReport | None) -> int:
    return max(report.step, 0) if report else 0
