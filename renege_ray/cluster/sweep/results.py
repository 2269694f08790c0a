"""What a finished sweep leaves for people: report, best configuration and embedding, verdict, summary, last lines."""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from renege_ray.cluster.sweep.report import STEPS, best_trial, write_sweep_report
from renege_ray.cluster.sweep.storage import STUDY_FILE, study_url
from renege_ray.cluster.sweep.study import StudySearch
from renege_ray.cluster.sweep.trial import SweepJob, TrialTask, trial_folder, trial_root
from renege_ray.cluster.sweep.watch import read_result
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.cluster.training.checkpoints import CheckpointStore
from renege_ray.output.console import say
from renege_ray.output.folder import CONFIG_FILE, EMBEDDING_FILE, shown_path
from renege_ray.sweeps.confirmation import SeedComparison
from renege_ray.sweeps.space import SearchSpace
from renege_ray.sweeps.trial import test_name, thrifty
from renege_ray.training.results import ModelFacts, metadata_of, save_embedding

FIRST_FRESH_SEED = 1000  # above the sweep's own


@dataclass(frozen=True)
class Confirmation:
    """The trainings of the best setting and of the preset's own on fresh seeds: {seed: (best, default)}."""

    metric: str
    """What is compared, by its name on held-out pairs. Empty where there is nothing to confirm: it was turned off, or
    the best setting is the preset's own.
    """
    maximise: bool
    pairs: Mapping[int, tuple[TrialTask, TrialTask]]
    same: bool

    @classmethod
    def plan(cls, job: SweepJob, space: SearchSpace, search: StudySearch) -> "Confirmation":
        """Which trainings there have to be."""
        base, best = job.base, the_best(search)
        objective = space.objectives[0]
        default = space.first_points(base)[0]
        same = default == best.params
        points = {f"trial-{best.number:04d}": best.params, "default": default}
        configs = {name: thrifty(space.config(base, point), base, job.objectives) for name, point in points.items()}

        def task(name: str, seed: int) -> TrialTask:
            folder = f"confirm/{name}-seed-{seed}"
            changes = {"seed": seed, "output_dir": base.output_dir / folder}
            return TrialTask(folder, configs[name].model_copy(update=changes), test=True)

        seeds = [base.seed + FIRST_FRESH_SEED + place for place in range(0 if same else base.sweep.confirm_seeds)]
        pairs = {seed: (task(f"trial-{best.number:04d}", seed), task("default", seed)) for seed in seeds}
        return cls(test_name(objective.metric), objective.direction == "maximize", pairs, same)

    def tasks(self) -> list[TrialTask]:
        """All trainings."""
        return [task for pair in self.pairs.values() for task in pair]

    def missing(self, folder: Path) -> list[TrialTask]:
        """Those that have no value yet."""
        reports = {task.folder: read_result(folder / task.folder) for task in self.tasks()}
        return [task for task in self.tasks() if (found := reports[task.folder]) is None or found.status == "failed"]

    def compare(self, folder: Path) -> SeedComparison | str:
        """What came out, or why there is nothing to compare."""
        if self.same:
            return "the preset's own settings are the best that was found"
        if not self.pairs:
            return "not confirmed on fresh seeds (sweep.confirm_seeds is 0): the gain on validation may be luck"
        missing = {task.folder for task in self.missing(folder)}
        values = []
        for pair in self.pairs.values():
            if not missing & {task.folder for task in pair}:
                reports = [read_result(folder / task.folder) for task in pair]
                values.append([report.metrics[self.metric] for report in reports if report is not None])
        if not values:
            return "not confirmed on fresh seeds: those trainings failed (see confirm/*/result.json)"
        best, default = zip(*values, strict=True)
        return SeedComparison(self.metric, best, default, self.maximise)


def the_best(search: StudySearch) -> FrozenTrial:
    """The best trial of a study that has one; of several objectives, the middle way between them."""
    best = best_trial(search.study)
    assert best is not None
    return best


def keep_results(
    job: SweepJob,
    space: SearchSpace,
    search: StudySearch,
    confirmation: Confirmation,
    figures: Mapping[str, float],
    log: RunLog,
) -> int:
    """Write everything below the output folder; tell MLflow; print the last lines. Returns the exit code."""
    folder, best = job.base.output_dir, the_best(search)
    artifacts = {"config": folder / CONFIG_FILE, "study": folder / STUDY_FILE}
    artifacts |= write_sweep_report(search.study, space, job.base, folder)
    comparison = confirmation.compare(folder)
    verdict = comparison if isinstance(comparison, str) else comparison.verdict()
    counts = _counts(search)
    table = folder / "results.txt"
    leaderboard = artifacts["leaderboard"].read_text(encoding="utf-8")
    table.write_text(f"{leaderboard}\n{_summary_line(counts, space, best)}\n{verdict}\n", encoding="utf-8")
    artifacts["table"] = table
    settings = ", ".join(f"{name} {_short(value)}" for name, value in best.params.items())
    picture = artifacts.get("sweep_history")
    log.describe(table, f"Best is trial {best.number}: {settings}. On fresh seeds: {verdict}", picture)
    if embedding := _keep_embedding(job, space, best, log):
        artifacts["embedding"] = embedding
    metrics = counts | dict(figures)
    metrics |= {f"best/{goal.metric}": value for goal, value in zip(space.objectives, best.values, strict=True)}
    metrics |= {} if isinstance(comparison, str) else comparison.metrics()
    log.metrics(len(search.trials()), metrics)
    failed = len(confirmation.missing(folder))
    log.finish("failed" if failed else "finished", artifacts=artifacts, metrics=metrics | {"best/trial": best.number})
    say(table.read_text(encoding="utf-8"))
    for name in ("best_config", "embedding", "sweep_history"):
        if name in artifacts:
            say(f"{name.replace('_', ' ')}: {shown_path(artifacts[name])}")
    say(f"pictures: {shown_path(folder / 'images')}")
    say(f"study: {dashboard_command(folder)}")
    if failed:
        say(f"{failed} of the confirming trainings failed; see {shown_path(folder / 'confirm')}", error=True)
    say(log.review())
    return int(failed > 0)


def dashboard_command(folder: Path) -> str:
    """What a person types to look at the study, during the sweep as well."""
    program = "optuna-dashboard"
    note = "" if shutil.which(program) else f"   (after: pip install {program})"
    return f"{program} {shlex.quote(study_url(shown_path(folder)))}{note}"


def _keep_embedding(job: SweepJob, space: SearchSpace, best: FrozenTrial, log: RunLog) -> Path | None:
    """The embedding of the best trial, written and registered; None where nothing was learned."""
    folder = job.base.output_dir
    report = read_result(folder / trial_folder(best.number))
    found = CheckpointStore(trial_root(job.root, trial_folder(best.number))).newest_intact()
    if report is None or not report.facts or found is None:
        return None
    state, facts = found[1], ModelFacts.from_plain(report.facts)
    config = space.config(job.base, best.params)
    path = folder / EMBEDDING_FILE
    save_embedding(path, state.best.prompt_embeds, config, facts, state.best.step)
    metadata = asdict(metadata_of(config, facts, state.best.step))
    log.register_embedding(path, facts.base_model, metadata, state.best.step)
    return path


def _counts(search: StudySearch) -> dict[str, float]:
    states = [trial.state for trial in search.trials()]
    return {
        "sweep/trials": float(len(states)),
        "sweep/finished": float(states.count(TrialState.COMPLETE)),
        "sweep/stopped_early": float(states.count(TrialState.PRUNED)),
        "sweep/failed": float(states.count(TrialState.FAIL)),
        "sweep/updates": float(sum(trial.user_attrs.get(STEPS, 0) for trial in search.trials())),
    }


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summary_line(counts: Mapping[str, float], space: SearchSpace, best: FrozenTrial) -> str:
    """How many trials came to what, and how much of the work early stopping has saved."""
    full = counts["sweep/trials"] * space.most_updates if space.needs_training else 0
    share = f", {counts['sweep/updates'] / full:.0%} of the updates of training all to the end" if full else ""
    values = ", ".join(f"{goal.metric} {value:.4f}" for goal, value in zip(space.objectives, best.values, strict=True))
    return (
        f"{counts['sweep/trials']:.0f} of {space.trials} trials: {counts['sweep/finished']:.0f} finished, "
        f"{counts['sweep/stopped_early']:.0f} stopped early, {counts['sweep/failed']:.0f} failed{share}\n"
        f"best: trial {best.number}, {values} on validation"
    )
