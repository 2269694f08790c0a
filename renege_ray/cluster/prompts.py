"""The job `tune_prompts` on Ray Data: check, tune on a pool of actors, keep the table and what it says.

Prompts go through Ray Data in chunks, a block each, to actors that hold the models. The actors write the rows
(`cluster.prompt_worker`): the files that are there are the checkpoint, one bookkeeping for results and progress.
So this does not use Ray Data's own checkpoints, which know a row only once its whole block has been written by a
task of its own; a block that is large enough to keep an actor's slots full would be lost as a whole.
"""

import logging
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from renege_ray.cluster import journal
from renege_ray.cluster import ray_session as session  # first: it sets up Ray's environment
from renege_ray.cluster.checkpoints import shared_folder
from renege_ray.cluster.prompt_worker import PromptWorker, TuningJob, chunk_table
from renege_ray.cluster.resources import WorkerShape, worker_shape
from renege_ray.cluster.signals import StopRequest, run_until_stopped
from renege_ray.cluster.tracking import RunLog, open_run, resolve_uri
from renege_ray.cluster.tuning_results import keep_results
from renege_ray.config import RunConfig, to_mapping, write_config
from renege_ray.errors import UserError, describe
from renege_ray.output import check_output_dir, make_output_dir
from renege_ray.plan import describe_tuning_plan
from renege_ray.progress import duration
from renege_ray.tuning_inputs import TuningInputs, read_tuning_inputs
from renege_ray.tuning_report import TuningReport
from renege_ray.tuning_table import PromptToTune, TuningTable

JOB = "tune_prompts"
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_LINES = 10.0
# A chunk's last prompts leave slots empty: with 8 prompts a slot, that is a twentieth of the time.
CHUNK_ROUNDS = 8


@dataclass
class _Outcome:
    """How the pipeline ended: the sums of its chunks' figures, and what stopped it, if anything did."""

    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""


def run(config: RunConfig, *, resume: bool = False, dry_run: bool = False) -> int:
    """Tune all prompts that have no row yet, and report on all rows.

    Args:
        config: the whole configuration. Its output folder is made absolute: workers run elsewhere.
        resume: the output folder holds a run of these settings already.
        dry_run: check everything and print the plan; start nothing.

    Returns:
        The exit code: 0 done, 1 too many prompts failed or the pipeline did, 130 or 143 stopped by Ctrl-C or SIGTERM.

    Raises:
        UserError: bad input, before a model is loaded or Ray is started.
    """
    config = config.model_copy(update={"output_dir": config.output_dir.absolute()})
    check_output_dir(config.output_dir, resume=resume)
    _check_same_job(config)
    resolve_uri(config.tracking_uri, config.output_dir)
    inputs = read_tuning_inputs(config)
    if session.uses_own_cluster():
        worker_shape(config.cluster, [session.this_machine()])
    if dry_run:
        print(describe_tuning_plan(config, len(inputs.prompts), inputs.notes))
        return 0
    for note in inputs.notes:
        print(note, flush=True)
    with session.ray_session(config.cluster) as shape:
        make_output_dir(config.output_dir, resume=resume)
        write_config(config, config.output_dir)
        with open_run(
            config.output_dir,
            job=JOB,
            experiment=config.experiment,
            params=to_mapping(config),
            tracking_uri=config.tracking_uri,
        ) as log:
            log.artifact(config.output_dir / "config.yaml")
            return _tune(config, inputs, shape, log)


def _check_same_job(config: RunConfig) -> None:
    other = journal.read_json(config.output_dir / journal.STATE).get("job", JOB)
    if other != JOB:
        raise UserError(f"--output-dir: {config.output_dir} holds a run of {other}; name another folder")


def _tune(config: RunConfig, inputs: TuningInputs, shape: WorkerShape, log: RunLog) -> int:
    """Run the pipeline to its end, however that comes, and close the run accordingly."""
    root = f"{shared_folder(config.output_dir, config.cluster.storage_path)}/prompts-{inputs.key}"
    table = TuningTable(root)
    table.create()
    table.remove_leftovers()
    done = table.ids()
    missing = [prompt for prompt in inputs.prompts if prompt.id not in done]
    if len(missing) < len(inputs.prompts):
        print(f"{len(inputs.prompts) - len(missing)} of {len(inputs.prompts)} prompts have a row already", flush=True)
    job = TuningJob(config, inputs.initial, root, uuid.uuid4().hex[:12], shape.threads)
    watch = _Watch(table, log, len(done) + len(missing))
    request = StopRequest()

    def stop() -> None:
        print("stopping; finished prompts are kept (a second signal stops at once)", flush=True)
        job.mailbox.request_stop()

    outcome = _Outcome()
    if missing:
        outcome = run_until_stopped(lambda: _run_pipeline(job, missing, shape), stop, request, meanwhile=watch.look)
        job.mailbox.clear()
    table.remove_leftovers()
    report = TuningReport()
    report.update(table)
    if request.signal is not None or outcome.error:
        status = "failed" if outcome.error else "interrupted"
        log.finish(status)
        why = f"tuning failed: {outcome.error}" if outcome.error else "interrupted"
        print(f"{why}; {report.rows} rows are kept, go on by --resume {config.output_dir}", file=sys.stderr)
        print(log.review(), flush=True)
        return 1 if outcome.error else request.exit_code
    lost = len({prompt.id for prompt in inputs.prompts} - table.ids())
    return keep_results(config, job, table, report, shape, outcome.figures, log, lost)


def _run_pipeline(job: TuningJob, prompts: Sequence[PromptToTune], shape: WorkerShape) -> _Outcome:
    """Tune the prompts on Ray Data; what the chunks tell is all that comes back to the driver."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _quiet_console()
    started = time.monotonic()
    figures: dict[str, float] = {}
    try:
        chunks = _chunks(job.config, prompts, shape)
        # Ray's defaults are what is wanted: a task is done again when its worker dies, max_errored_blocks is 0. How
        # often a worker may die is for `kill_journal` to say.
        told = ray.data.from_arrow([chunk_table(chunk) for chunk in chunks]).map_batches(
            PromptWorker,
            fn_constructor_args=(job,),
            batch_size=len(chunks[0]),  # a whole block: with GPUs, Ray wants the number
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=shape.min_workers, max_size=shape.max_workers, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
        )
        for row in told.iter_rows():
            for name, value in row.items():
                figures[name] = figures.get(name, 0.0) + float(value)
    except Exception as error:  # of a worker (a full disk, a model that cannot be loaded), or of Ray itself
        reasons = job.mailbox.take()
        return _Outcome(figures, reasons[0] if reasons else describe(error))
    return _Outcome(figures | {"wall_seconds": time.monotonic() - started})


def _chunks(config: RunConfig, prompts: Sequence[PromptToTune], shape: WorkerShape) -> list[Sequence[PromptToTune]]:
    """Chunks that keep slots full, and small enough for all workers to have one."""
    slots = config.tuning.slots
    size = min(CHUNK_ROUNDS * slots, max(slots, -(-len(prompts) // shape.max_workers)))
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _quiet_console() -> None:
    """Ray Data tells the console of every step; its log file in Ray's own folder still has it all.

    Handlers that an application or a test runner has put on Ray's logger are not ours to silence: they may be the
    very ones that our own warnings go to.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)


class _Watch:
    """Looks at the table now and then: tells MLflow the aggregates, and the user in one line."""

    def __init__(self, table: TuningTable, log: RunLog, total: int) -> None:
        self._table, self._log, self._total = table, log, total
        self._report = TuningReport()
        self._report.update(table)
        self._first = self._report.rows
        self._started = self._last_line = time.monotonic()
        self._next_look = 0.0

    def look(self) -> None:
        """To be called often; it does little most of the time."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        if not self._report.update(self._table):
            return
        done, rate = self._report.rows, (self._report.rows - self._first) / (now - self._started)
        left = (self._total - done) / rate if rate else 0.0
        metrics = self._report.live_metrics()
        self._log.metrics(done, metrics | {"perf/prompts_per_second": rate, "perf/eta_seconds": left})
        if now - self._last_line >= SECONDS_BETWEEN_LINES or done >= self._total:
            self._last_line = now
            print(_line(done, self._total, metrics, rate, left), flush=True)


def _line(done: int, total: int, metrics: dict[str, Any], rate: float, left: float) -> str:
    return (
        f"{done:>{len(str(total))}}/{total} prompts  {metrics['tuning/failed']:.0f} failed  "
        f"gain {metrics['tuning/gain/tune']:+.4f} (tune seeds), {metrics['tuning/gain/eval']:+.4f} (fresh seeds)  "
        f"{rate:.2f} prompts/s  ETA {duration(left)}"
    )
