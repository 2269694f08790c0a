"""The job `tune_prompts` on Ray Data: check, tune on a pool of actors, keep the table and what it says."""

from collections.abc import Mapping, Sequence
from functools import partial

from renege_ray.cluster.cost import tuning_cost
from renege_ray.cluster.job import run_repeatable, workers_on
from renege_ray.cluster.pipelines.pipeline import run_pipeline
from renege_ray.cluster.pipelines.tuning_results import keep_results
from renege_ray.cluster.pipelines.tuning_worker import PromptWorker, TuningJob
from renege_ray.cluster.plan import describe_tuning_plan
from renege_ray.cluster.session import ray_session  # noqa: F401 (first: it sets up Ray's environment)
from renege_ray.cluster.session.resources import WorkerShape
from renege_ray.cluster.tracking.runs import RunLog
from renege_ray.cluster.training.checkpoints import check_rows_go_on, shared_folder
from renege_ray.config.gpus import Gpu
from renege_ray.config.run import RunConfig
from renege_ray.embeddings.tables import POINTER, TABLE
from renege_ray.output.folder import CONFIG_FILE, write_text
from renege_ray.output.storage import join, put_file
from renege_ray.tuning.inputs import TuningInputs, read_tuning_inputs
from renege_ray.tuning.progress import TuningProgress
from renege_ray.tuning.table import PromptToTune

JOB = "tune_prompts"
# A chunk's last prompts leave slots empty: with 8 prompts a slot, that is a twentieth of the time.
CHUNK_ROUNDS = 8


def run(config: RunConfig, *, resume: bool = False, dry_run: bool = False, gpu: Gpu | None = None) -> int:
    """Tune all prompts that have no row yet, and report on all rows. See `run_repeatable`."""
    return run_repeatable(
        JOB,
        config,
        resume=resume,
        dry_run=dry_run,
        read=_read,
        plan=partial(_plan, gpu),
        work=_tune,
        shape_on=workers_on,
    )


def _read(config: RunConfig) -> TuningInputs:
    check_rows_go_on(config.output_dir, config.cluster.storage_path)
    return read_tuning_inputs(config)


def _plan(gpu: Gpu | None, config: RunConfig, inputs: TuningInputs) -> str:
    return describe_tuning_plan(config, len(inputs.prompts), inputs.notes, gpu)


def _tune(config: RunConfig, inputs: TuningInputs, shape: WorkerShape, log: RunLog) -> int:
    """Run the pipeline to its end, however that comes, and close the run accordingly."""
    shared = shared_folder(config.output_dir, config.cluster.storage_path)
    root = join(shared, f"{TABLE}{inputs.key}")
    if config.cluster.storage_path is not None:  # the one is found by the other, also after a kill
        write_text(config.output_dir / POINTER, f"{root}\n")
        put_file(config.output_dir / CONFIG_FILE, shared)
    job = TuningJob(
        config=config,
        initial=inputs.initial,
        root=root,
        threads=shape.threads,
        cost=tuning_cost(config, len(inputs.prompts)),
        workers=shape.max_workers,
    )
    progress = TuningProgress()
    outcome = run_pipeline(
        PromptWorker,
        job,
        inputs.prompts,
        partial(_chunks, config, shape),
        shape,
        progress,
        log,
        work="tuning",
        unit="prompts",
        words=_words,
    )
    if outcome.code is not None:
        return outcome.code
    return keep_results(config, job, shape, progress, outcome, log)


def _chunks(config: RunConfig, shape: WorkerShape, prompts: Sequence[PromptToTune]) -> list[Sequence[PromptToTune]]:
    """Chunks that keep slots full, and small enough for all workers to have one."""
    slots = config.tuning.slots
    size = min(CHUNK_ROUNDS * slots, max(slots, -(-len(prompts) // shape.max_workers)))
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _words(metrics: Mapping[str, float]) -> str:
    return (
        f"{metrics['tuning/failed']:.0f} failed  gain {metrics['tuning/gain/tune']:+.4f} (tune seeds), "
        f"{metrics['tuning/gain/eval']:+.4f} (fresh seeds)"
    )
