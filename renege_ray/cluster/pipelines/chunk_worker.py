"""What the actors of all pipelines on Ray Data do alike: load once, then compute the items of chunk after chunk.

An actor writes finished rows itself, a file every few seconds, and gives Ray Data the figures of a chunk alone. So a
row is safe soon after it is done, whatever happens to the chunk's task; and what Ray does again after a worker's death
is what has no row yet.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch

from renege_ray.cluster.cost import NOTHING, Cost
from renege_ray.cluster.pipelines.kill_journal import MAX_KILLS, KillJournal, counted_start, journal_path
from renege_ray.cluster.session.mailbox import Mailbox, StopWatch
from renege_ray.config.run import RunConfig
from renege_ray.errors import describe
from renege_ray.output.parquet_folder import ParquetFolder


@dataclass(frozen=True, kw_only=True)
class PipelineJob:
    """All that a worker needs; it travels to machines that may not see the driver's files."""

    config: RunConfig
    root: str
    """Of the table."""
    session: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Of this start of the job; deaths of workers count within it."""
    threads: int
    """Of torch on the CPU."""
    cost: Cost = NOTHING
    """Of all that is to be computed, by so many workers."""
    workers: int = 1


class HasId(Protocol):
    """What is computed: a dataclass of texts and numbers that has a row in the table."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Unique in the table, and stable."""
        ...


Item = TypeVar("Item", bound=HasId)


def as_block(chunk: Sequence[HasId]) -> pa.Table:
    """A chunk as a block of Ray Data. `ChunkWorker` makes items of it again."""
    names = [given.name for given in fields(chunk[0]) if given.init]
    return pa.table({name: [getattr(item, name) for item in chunk] for name in names})


class ChunkWorker(ABC, Generic[Item]):
    """A callable for `Dataset.map_batches`: chunks of items in, one line of figures a chunk out."""

    item: Callable[..., Item]
    """The class of items."""
    table: Callable[[str], ParquetFolder]
    """The class of the table, which is made of its root."""

    def __init__(self, job: PipelineJob, mailbox: Mailbox) -> None:
        """Load everything."""
        self._job, self._config, self._mailbox, self._table = job, job.config, mailbox, self.table(job.root)
        started = time.monotonic()
        torch.set_num_threads(job.threads)
        with self._telling_the_driver(), self._counted_start():
            self._load()
        self._load_seconds = time.monotonic() - started
        self._asked_to_stop = StopWatch(mailbox)

    @abstractmethod
    def _load(self) -> None:
        """Load models and rewards."""

    @abstractmethod
    def _compute(self, items: Sequence[Item]) -> None:
        """Compute items and write their rows; `_note` them before, and stop where `_asked_to_stop`."""

    @abstractmethod
    def _give_up(self, items: Sequence[Item], error: str) -> None:
        """Write failed rows for items that kill their workers."""

    def _counters(self) -> dict[str, float]:
        """What else to tell, counted from the start of the worker."""
        return {}

    def __call__(self, chunk: pa.Table) -> dict[str, np.ndarray]:
        """Compute a chunk, but for what has its rows already."""
        with self._telling_the_driver():
            figures = self._work_on([self.item(**row) for row in chunk.to_pylist()])
        return {name: np.array([float(value)]) for name, value in figures.items()}

    def _work_on(self, items: Sequence[Item]) -> dict[str, float]:
        started, before = time.monotonic(), self._counters()
        path = journal_path(self._table.path, self._job.session, items[0].id.replace("/", "-"))
        self._journal = KillJournal(self._table.filesystem, path)
        done = self._table.ids() if self._journal.restarted else set()
        missing = [item for item in items if item.id not in done]
        kills = self._journal.kills
        lost = [item for item in missing if kills.get(item.id, 0) >= MAX_KILLS]
        if lost:
            self._give_up(lost, f"killed its worker {MAX_KILLS} times")
        for suspect in missing:
            if 0 < kills.get(suspect.id, 0) < MAX_KILLS:
                self._compute([suspect])
        self._compute([item for item in missing if not kills.get(item.id, 0)])
        if not self._asked_to_stop.stopping:
            self._journal.close()
        load_seconds, self._load_seconds = self._load_seconds, 0.0  # told once
        figures = {"rows": float(len(missing)), "seconds": time.monotonic() - started, "load_seconds": load_seconds}
        return figures | {name: value - before[name] for name, value in self._counters().items()}

    def _note(self, present: Sequence[str]) -> None:
        """The items of these ids are about to be computed, and no others."""
        self._journal.note(present)

    def _counted_start(self) -> AbstractContextManager[None]:
        _, workers = self._config.cluster.worker_range
        return counted_start(self._table.filesystem, self._table.path, self._job.session, workers)

    @contextmanager
    def _telling_the_driver(self) -> Iterator[None]:
        """Ray's own account of a worker's exception is long, and does not begin with its cause."""
        try:
            yield
        except Exception as error:
            self._mailbox.post(describe(error))
            raise
