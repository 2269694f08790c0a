"""What the driver of a sweep does whenever Ray Tune hears of a trial: files, MLflow's child runs, study, progress."""

import io
import math
from pathlib import Path
from typing import Any

import ray.tune
from PIL import Image
from ray.tune.experiment import Trial

from renege_ray.cluster.sweep.progress import SweepProgress
from renege_ray.cluster.sweep.report import REASON, SECONDS, STEPS
from renege_ray.cluster.sweep.study import NotKept, StudySearch
from renege_ray.cluster.sweep.trial import REPORT, TASK, TrialTask
from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.config.run import to_mapping, write_config
from renege_ray.sweeps.trial import TrialReport

RESULT_FILE = "result.json"
TRIAL_JOB, CONFIRM_JOB = "sweep_trial", "sweep_confirm"


class TrialWatch(NotKept, ray.tune.Callback):
    """Keeps what trials tell, below the sweep's folder; only this process talks to MLflow.

    Args:
        folder: of the sweep. log: of the sweep.
        search: none for trials that only confirm.
    """

    def __init__(self, folder: Path, log: RunLog, progress: SweepProgress, search: StudySearch | None = None) -> None:
        self._folder, self._log, self._progress, self._search = folder, log, progress, search
        self._logs: dict[str, RunLog] = {}
        self.stopping = False  # from then on, a trial whose process died did not fail: the signal was for it, too

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Open the trial's folder and its run. Also called when a trial goes on after its process has died."""
        task: TrialTask = trial.config[TASK]
        folder = self._folder / task.folder
        if trial.trial_id not in self._logs:
            self._logs[trial.trial_id] = open_trial_log(self._log, folder, task)
        self._progress.starts(trial.trial_id, task)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep a report; what Ray Tune has no use for does not stay in its memory."""
        report: TrialReport = result.pop(REPORT)
        log = self._logs[trial.trial_id]
        for step, metrics in report.curves:
            log.metrics(step, metrics)
        if report.picture is not None:
            with Image.open(io.BytesIO(report.picture)) as picture:
                log.image("validation", picture, report.step)
        if self._search is not None:
            self._note(trial.trial_id, report)
        if report.status:
            write_result(log.output_dir, report)
        self._progress.hears(trial.trial_id, report)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close the trial's run; the study has closed its trial just now."""
        self._close(trial.trial_id, read_result(self._logs[trial.trial_id].output_dir))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial whose process died too often, or that Ray could not start."""
        if self.stopping:
            return
        reason = f"its process died{_last_words(trial)}"
        if self._search is not None:
            self._search.fail(trial.trial_id, reason)
        report = TrialReport(-1, (), status="failed", reason=reason)
        if trial.trial_id in self._logs:
            write_result(self._logs[trial.trial_id].output_dir, report)
            self._close(trial.trial_id, report)

    def interrupt(self) -> None:
        """Close the runs of the trials that are to go on later."""
        for log in self._logs.values():
            log.finish("interrupted")
        self._logs.clear()

    def _note(self, trial_id: str, report: TrialReport) -> None:
        """What the study shows of a trial besides its value."""
        assert self._search is not None
        if report.status:
            figures = {name: value for name, value in report.metrics.items() if math.isfinite(value)}
            self._search.note(trial_id, status=report.status, metrics=figures)
        if report.reason:
            self._search.note(trial_id, **{REASON: report.reason})
        seconds = [value for _, metrics in report.curves if (value := metrics.get("perf/seconds")) is not None]
        if seconds:
            self._search.note(trial_id, **{STEPS: report.step, SECONDS: round(seconds[-1], 2)})

    def _close(self, trial_id: str, report: TrialReport | None) -> None:
        step = self._progress.ends(trial_id, report)
        close_trial_log(self._logs.pop(trial_id), report, step)
        if self._search is not None:
            ended = sum(trial.state.is_finished() for trial in self._search.trials())
            self._log.metrics(ended, self._progress.live_metrics())


def _last_words(trial: Trial) -> str:
    """The end of what Ray Tune has written of a trial's error, in the driver's part of its folder."""
    try:
        lines = Path(trial.error_file or "").read_text(encoding="utf-8").strip().splitlines()
    except OSError:
        return ""
    return f": {' '.join(lines[-1].split())}" if lines else ""


def open_trial_log(parent: RunLog, folder: Path, task: TrialTask) -> RunLog:
    """A trial's folder with its configuration, and its child run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(task.config, folder)
    job = CONFIRM_JOB if task.test else TRIAL_JOB
    return parent.child(folder, job=job, params=to_mapping(task.config))


def close_trial_log(log: RunLog, report: TrialReport | None, step: int) -> None:
    """End a trial's run after `step` updates. No report: it was stopped early."""
    figures = {"sweep/stopped_early": float(report is None), **(report.metrics if report else {})}
    log.metrics(step, figures)
    failed = report is not None and report.status == "failed"
    log.finish("failed" if failed else "finished", metrics=figures)


def write_result(folder: Path, report: TrialReport) -> None:
    """Keep the last report of a trial; its presence says that the trial is over."""
    record = {"step": report.step, "values": list(report.values), "status": report.status, "reason": report.reason}
    metrics = {name: value if math.isfinite(value) else None for name, value in report.metrics.items()}
    journal.write_json(folder / RESULT_FILE, record | {"metrics": metrics, "facts": report.facts})


def read_result(folder: Path) -> TrialReport | None:
    """The last report of a trial that ended by itself."""
    found = journal.read_json(folder / RESULT_FILE)
    if not found:
        return None
    metrics = {name: math.nan if value is None else value for name, value in found["metrics"].items()}
    plain = {name: found[name] for name in ("step", "status", "reason", "facts")}
    return TrialReport(values=tuple(found["values"]), metrics=metrics, **plain)
