"""What a finished tuning of prompts leaves for people: the table of results, figures, gallery, summary."""

from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from PIL import Image
from torch import Tensor

from renege_ray.cluster.pipelines.pipeline import Outcome
from renege_ray.cluster.pipelines.tuning_worker import TuningJob
from renege_ray.cluster.session.device import worker_device
from renege_ray.cluster.session.resources import WorkerShape
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.config.run import RunConfig
from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings
from renege_ray.embeddings.tables import POINTER
from renege_ray.method.embedding import as_stored
from renege_ray.models.load import load_model
from renege_ray.output.console import say
from renege_ray.output.folder import CONFIG_FILE, shown_path, write_text
from renege_ray.output.pictures import image_grid
from renege_ray.rewards.video.frames import middle_frame
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, generate_all
from renege_ray.tuning.progress import TuningProgress
from renege_ray.tuning.report import LABELS, TuningReport, draw_distributions, write_listed
from renege_ray.tuning.scores import METHODS
from renege_ray.tuning.table import TuningTable
from renege_ray.tuning.tune import tuning_seeds

LARGEST_ARTIFACT_BYTES = 256 * 2**20
GALLERY_EACH = 3


def keep_results(
    config: RunConfig, job: TuningJob, shape: WorkerShape, progress: TuningProgress, outcome: Outcome, log: RunLog
) -> int:
    """Write table, figures, gallery and summary below the output folder; tell MLflow; print the last lines.

    Returns:
        The exit code: 0 if no more prompts failed than are allowed, and every prompt has its row.
    """
    folder, missing = config.output_dir, outcome.missing
    table = TuningTable(job.root)
    report = TuningReport(table)
    results = folder / "results.txt"
    results.write_text(report.text(), encoding="utf-8")
    artifacts = {"config": folder / CONFIG_FILE, "table": results, "gains": write_listed(report, folder / "gains.csv")}
    if report.failed < report.rows:
        artifacts["distributions"] = log.image("distributions", draw_distributions(report), report.rows)
        artifacts["gallery"] = log.image("gallery", _gallery(job, report, shape), report.rows)
    metrics = report.metrics() | _performance(outcome.figures)
    log.metrics(report.rows, metrics | progress.live_metrics())
    artifacts |= _send_table(table, folder, log)
    log.describe(results, report.answer(), artifacts.get("gallery"))
    too_many = report.failed > config.tuning.max_failed
    log.finish("failed" if too_many or missing else "finished", artifacts=artifacts, metrics=metrics)
    say(results.read_text(encoding="utf-8"))
    if too_many:
        reasons = dict.fromkeys(report["error"][report["status"] == "failed"])
        say(
            f"{report.failed} prompts failed, and tuning.max_failed is {config.tuning.max_failed}; "
            f"the first reason: {next(iter(reasons))}",
            error=True,
        )
    if missing:
        say(f"{missing} prompts have no row; the same command goes on with them", error=True)
    if "gallery" in artifacts:
        say(f"best, median and worst: {shown_path(artifacts['gallery'])}")
    say(f"embeddings: {shown_path(Path(table.path)) if folder in Path(table.path).parents else table.root}")
    say(log.review())
    return int(bool(too_many or missing))


def _performance(figures: dict[str, float]) -> dict[str, float]:
    """Of this start of the job alone."""
    if not figures.get("slot_steps"):
        return {}
    return {
        "perf/prompts_per_second": figures["rows"] / figures["wall_seconds"],
        "perf/slots_filled": figures["slot_steps_used"] / figures["slot_steps"],
        "perf/load_seconds": figures["load_seconds"],
        "perf/worker_seconds": figures["seconds"],
    }


def _send_table(table: TuningTable, folder: Path, log: RunLog) -> dict[str, Path]:
    """The Parquet files as an artifact, where they are local and not too large; the summary names their folder."""
    path = Path(table.path)
    if not path.is_relative_to(folder):
        return {"prompts": folder / POINTER}
    if sum(file.stat().st_size for file in path.glob("*.parquet")) > LARGEST_ARTIFACT_BYTES:
        write_text(folder / POINTER, f"{path.as_uri()}\n")
        log.artifact(folder / POINTER)
        return {"prompts_uri": folder / POINTER}
    return {"prompts": path}


def _gallery(job: TuningJob, report: TuningReport, shape: WorkerShape) -> Image.Image:
    """Best, middle and worst gains on fresh seeds under all methods, each from its first fresh seed."""
    chosen = report.chosen(GALLERY_EACH)
    prompts = [report.prompt(index) for _, index in chosen]
    all_gains = report.gains()
    gains = [float(all_gains[index]) for _, index in chosen]
    task = ray.remote(num_cpus=shape.cpus, num_gpus=shape.gpus, max_calls=1)(_gallery_images)
    images = ray.get(task.remote(job, prompts))
    captions = [f"{name} {gain:+.3f}: {text}" for (name, _), gain, text in zip(chosen, gains, prompts, strict=True)]
    rows = {LABELS[method]: found for method, found in images.items()}
    return image_grid(rows, captions, "the same fresh seed in each column; gain over global")


def _gallery_images(job: TuningJob, prompts: Sequence[str]) -> dict[str, Tensor]:
    """{method: (k, 3, H, W)} of prompts that have rows; runs where the workers ran."""
    torch.set_num_threads(job.threads)
    model = load_model(job.config.model, worker_device(job.config.cluster))
    encoded = EncodedPrompts(model)
    with PromptEmbeddings.open(job.root) as embeddings:
        own = embeddings.batch(prompts)
    with model.encoding():
        encoded.prepare(prompts)
        negatives = {
            "null": encoded.null(),
            "handwritten": encoded.negatives([job.config.prompts.handwritten[0]]),
            "global": as_stored(job.initial.starting_point(model, encoded)),
            "prompt": own,
        }
    pairs = [Pair(prompt, tuning_seeds(job.config, prompt)[1][0]) for prompt in prompts]
    size = job.config.validation.batch_size
    return {
        method: middle_frame(generate_all(model, negatives[method], pairs, job.config.sampling, encoded, size)).float()
        for method in METHODS
    }
