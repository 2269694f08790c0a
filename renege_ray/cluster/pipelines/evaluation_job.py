"""The job `evaluate` on Ray Data: check, make and score images on a pool of actors, report on all of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from renege_ray.cluster.cost import evaluation_cost
from renege_ray.cluster.job import check_for_models, run_repeatable, workers_on
from renege_ray.cluster.pipelines.evaluation_results import keep_results
from renege_ray.cluster.pipelines.evaluation_worker import EvaluateWorker, EvaluationJob
from renege_ray.cluster.pipelines.pipeline import run_pipeline
from renege_ray.cluster.plan import describe_evaluation_plan
from renege_ray.cluster.session import ray_session  # noqa: F401 (first: it sets up Ray's environment)
from renege_ray.cluster.session.downloads import downloads_of
from renege_ray.cluster.session.resources import WorkerShape
from renege_ray.cluster.tracking.runs import RunLog
from renege_ray.cluster.training.checkpoints import check_rows_go_on, shared_folder
from renege_ray.config.gpus import Gpu
from renege_ray.config.run import RunConfig
from renege_ray.evaluation.inputs import EvaluationInputs, read_evaluation_inputs, scores_of
from renege_ray.evaluation.progress import EvaluationProgress
from renege_ray.evaluation.table import EvaluationTable, ImageToMake
from renege_ray.output.storage import join

JOB = "evaluate"
CHUNK_BATCHES = 16  # a chunk is what a worker is given at once


def run(config: RunConfig, *, resume: bool = False, dry_run: bool = False, gpu: Gpu | None = None) -> int:
    """Make all images that have no row yet, and report on all of them. See `run_repeatable`."""
    return run_repeatable(
        JOB,
        config,
        resume=resume,
        dry_run=dry_run,
        read=_read,
        plan=partial(_plan, gpu),
        work=_evaluate,
        shape_on=workers_on,
        check=partial(check_for_models, gradients=False),
        downloads=_downloads,
    )


def _read(config: RunConfig) -> EvaluationInputs:
    check_rows_go_on(config.output_dir, config.cluster.storage_path)
    return read_evaluation_inputs(config)


def _downloads(config: RunConfig, inputs: EvaluationInputs) -> Callable[[], None] | None:
    models = {repr(negative.model): negative.model for negative in inputs.negatives}
    return downloads_of(models.values(), scores_of(config).all, config.rewards)


def _plan(gpu: Gpu | None, config: RunConfig, inputs: EvaluationInputs) -> str:
    return describe_evaluation_plan(config, inputs.prompts, len(inputs.images), inputs.notes, gpu)


def _evaluate(config: RunConfig, inputs: EvaluationInputs, shape: WorkerShape, log: RunLog) -> int:
    """Run the pipeline to its end, however that comes, and close the run accordingly."""
    shared = shared_folder(config.output_dir, config.cluster.storage_path)
    job = EvaluationJob(
        config=config,
        root=join(shared, f"rows-{inputs.key}"),
        threads=shape.threads,
        cost=evaluation_cost(config, len(inputs.images)),
        workers=shape.max_workers,
        negatives=inputs.negatives,
        images=join(shared, "images"),
    )
    labels = {negative.key: negative.label for negative in inputs.negatives}
    wanted = {image.id for image in inputs.images}
    outcome = run_pipeline(
        EvaluateWorker,
        job,
        inputs.images,
        partial(_chunks, config, inputs, shape),
        shape,
        EvaluationProgress(labels, wanted),
        log,
        work="the evaluation",
        unit="images",
        words=_words,
    )
    if outcome.code is not None:
        return outcome.code
    return keep_results(config, inputs, EvaluationTable(job.root).frame(labels, wanted), job.images, outcome, log)


def _chunks(
    config: RunConfig, inputs: EvaluationInputs, shape: WorkerShape, images: Sequence[ImageToMake]
) -> list[Sequence[ImageToMake]]:
    """Chunks of one model each, small enough for all workers to have one."""
    by_model: dict[str, list[ImageToMake]] = {}
    for image in images:
        by_model.setdefault(inputs.negatives[image.method].method.model, []).append(image)
    batch = config.evaluation.batch_size
    chunks: list[Sequence[ImageToMake]] = []
    for group in by_model.values():
        share = -(-len(group) // (shape.max_workers * batch)) * batch
        size = min(CHUNK_BATCHES * batch, share)
        chunks += [group[start : start + size] for start in range(0, len(group), size)]
    return chunks


def _words(metrics: Mapping[str, float]) -> str:
    bad = metrics["evaluation/failed"]
    means = ", ".join(
        f"{name.split('/')[1]} {value:.3f}" for name, value in metrics.items() if name.startswith("eval/")
    )
    return f"{bad:.0f} failed  {means}"
