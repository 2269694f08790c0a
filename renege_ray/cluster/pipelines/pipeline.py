"""What the jobs on Ray Data do alike: run chunks through a pool of actors, look on, stop, go on.

Items go through Ray Data in chunks, a block each, to actors that hold the models. The actors write the rows
(`cluster.chunk_worker`): the files that are there are the checkpoint, one bookkeeping for results and progress. The
driver merges them while it looks on.
So this does not use Ray Data's own checkpoints, which know a row only once its whole block has been written by a
task of its own; a block that is large enough to keep an actor busy would be lost as a whole.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from renege_ray.cluster.pipelines.chunk_worker import ChunkWorker, Item, PipelineJob, as_block
from renege_ray.cluster.pipelines.kill_journal import work_has_begun
from renege_ray.cluster.session.mailbox import Mailbox
from renege_ray.cluster.session.ray_session import LossWatch
from renege_ray.cluster.session.resources import WorkerShape
from renege_ray.cluster.session.signals import Abandoned, StopRequest, run_until_stopped
from renege_ray.cluster.tracking.runs import RunLog
from renege_ray.errors import describe
from renege_ray.output.console import say
from renege_ray.output.merged_files import Merger
from renege_ray.output.parquet_folder import ParquetFolder
from renege_ray.output.progress import duration

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Outcome:
    """How a pipeline ended."""

    figures: dict[str, float] = field(default_factory=dict)
    """The sums of what its chunks told; empty if there was nothing to do."""
    error: str = ""
    """What stopped it, if anything did."""
    missing: int = 0
    """How many items have no row."""
    code: int | None = None
    """The exit code of a pipeline that failed or was stopped; None if it came to its end."""


def run_pipeline(
    worker: type[ChunkWorker[Item]],
    job: PipelineJob,
    items: Sequence[Item],
    cut: Callable[[Sequence[Item]], Sequence[Sequence[Item]]],
    shape: WorkerShape,
    progress: "Progress",
    log: RunLog,
    *,
    work: str,
    unit: str,
    words: Callable[[Mapping[str, float]], str],
) -> Outcome:
    """Compute what has no row yet, until all is done, or a signal asks to stop; close the run where it came to no end.

    Args:
        worker: of what class the actors are.
        items: all of them.
        cut: makes chunks of the items that have no row.
        work: what the job does, such as "tuning".
        unit: what a row is, in the plural.
        words: the aggregates for the line of progress.
    """
    table = worker.table(job.root)
    table.create()
    table.remove_leftovers()
    missing = _missing(items, table)
    if len(missing) < len(items):
        say(f"{len(items) - len(missing)} of {len(items)} {unit} have a row already")
    request, outcome = StopRequest(), Outcome()
    if missing:
        merger = Merger(table, lambda: request.signal is not None)
        watch = Watch(table, merger, job.session, progress, log, len(missing), unit, words)
        mailbox = Mailbox()  # where the driver asks to stop, and workers say why they failed

        def stop() -> None:
            mailbox.request_stop()
            say("stopping; finished rows are kept (a second signal stops at once)")

        def compute() -> Outcome:
            return _compute(worker, job, mailbox, cut(missing), shape)

        try:
            outcome = run_until_stopped(compute, stop, request, meanwhile=watch.look, lost=LossWatch())
            mailbox.close()
            table.remove_leftovers()
        except Abandoned as reason:
            outcome.error = str(reason)
    progress.update(table)
    outcome.missing = len(_missing(items, table))
    if request.signal is not None or outcome.error:
        stopped = request.signal is not None  # it may have reached the workers, too, and made them fail
        log.finish("interrupted" if stopped else "failed")
        why = "interrupted" if stopped else f"{work} failed: {outcome.error}"
        say(f"{why}; {progress.rows} rows are kept, go on by --resume {log.output_dir}", error=True)
        say(log.review())
        outcome.code = request.exit_code or 1
    elif not outcome.missing:
        _merge(Merger(table), math.inf, all_rows=True)
    return outcome


def _missing(items: Sequence[Item], table: ParquetFolder) -> list[Item]:
    """The items that have no row."""
    done = table.ids()
    return [item for item in items if item.id not in done]


def _merge(merger: Merger, seconds: float, *, all_rows: bool = False) -> bool:
    """Merge files for about so long. Where that fails, on a full disk say, the table stays as it is, and complete;
    returns whether it has not.
    """
    started = time.monotonic()
    try:
        for _ in merger.merge(all_rows=all_rows):
            if time.monotonic() - started > seconds:
                break
    except OSError as error:
        say(f"the table's small files stay as they are, and many: {describe(error)}", error=True)
        return False
    return True


def _compute(
    worker: type[ChunkWorker[Item]],
    job: PipelineJob,
    mailbox: Mailbox,
    chunks: Sequence[Sequence[Item]],
    shape: WorkerShape,
) -> Outcome:
    """Run the chunks on Ray Data; what they tell is all that comes back to the driver."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    quiet_console()
    started = time.monotonic()
    figures: dict[str, float] = {}
    try:
        # Ray's defaults are what is wanted: a task is done again when its worker dies, max_errored_blocks is 0. How
        # often a worker may die is for `kill_journal` to say. (`from_arrow` would look at each block in a task.)
        told = ray.data.from_blocks([as_block(chunk) for chunk in chunks]).map_batches(
            worker,
            fn_constructor_args=(job, mailbox),
            batch_size=max(map(len, chunks)),  # a whole block: with GPUs, Ray wants the number
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
        reasons = mailbox.take()
        return Outcome(figures, reasons[0] if reasons else describe(error))
    return Outcome(figures | {"wall_seconds": time.monotonic() - started})


def quiet_console() -> None:
    """Ray Data tells the console of every step; its log file in Ray's own folder still has it all.

    Handlers that an application or a test runner has put on Ray's logger are not ours to silence: they may be the
    very ones that our own warnings go to.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)


class Progress(Protocol):
    """The rows that there are, and what they say so far."""

    @property
    def rows(self) -> int:
        """How many there are."""
        ...

    def update(self, table: ParquetFolder) -> bool:
        """Read the files that have come since the last call; returns whether there were any."""
        ...

    def live_metrics(self) -> dict[str, float]:
        """The aggregates that are told while the job works."""
        ...


class Watch:
    """Looks at the table now and then: tells MLflow the aggregates, and the user in one line; merges its files."""

    def __init__(
        self,
        table: ParquetFolder,
        merger: Merger,
        session: str,
        progress: Progress,
        log: RunLog,
        missing: int,
        unit: str,
        words: Callable[[Mapping[str, float]], str],
    ) -> None:
        """`merger`: of the table. `session`: of the job. `missing`: how many rows are to come. The others: see
        `run_pipeline`.
        """
        self._session, self._working, self._merging = session, False, True
        self._table, self._log, self._unit, self._words = table, log, unit, words
        self._progress, self._merger = progress, merger
        self._progress.update(table)
        self._first = self._progress.rows
        self._total = self._first + missing
        self._started = self._last_line = time.monotonic()
        self._next_look = 0.0

    def look(self) -> None:
        """To be called often; it does little most of the time."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        if not self._working:  # the models are being loaded, which says nothing of the rate
            self._working = work_has_begun(self._table.filesystem, self._table.path, self._session)
            self._started = now
        found = self._progress.update(self._table)
        self._merging = self._merging and _merge(self._merger, SECONDS_BETWEEN_LOOKS)
        if not found:
            return
        done = self._progress.rows
        rate = (done - self._first) / max(now - self._started, SECONDS_BETWEEN_LOOKS)
        left = (self._total - done) / rate if rate else 0.0
        metrics = self._progress.live_metrics()
        self._log.metrics(done, metrics | {f"perf/{self._unit}_per_second": rate, "perf/eta_seconds": left})
        if now - self._last_line >= SECONDS_BETWEEN_LINES or done >= self._total:
            self._last_line = now
            count = f"{done:>{len(str(self._total))}}/{self._total} {self._unit}"
            say(f"{count}  {self._words(metrics)}  {rate:.2f} {self._unit}/s  ETA {duration(left)}")
