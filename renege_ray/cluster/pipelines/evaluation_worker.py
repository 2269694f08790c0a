"""What runs in each actor of an evaluation: the rewards, and one model after the other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from renege_ray.cluster.compilation import settle
from renege_ray.cluster.pipelines.chunk_worker import ChunkWorker, PipelineJob
from renege_ray.cluster.session.device import worker_device
from renege_ray.embeddings.names import ComparedNegative
from renege_ray.evaluation.images import ImageMaker, Loaders, Row
from renege_ray.evaluation.inputs import scores_of
from renege_ray.evaluation.table import EvaluationTable, ImageToMake, table_schema
from renege_ray.models.load import load_model
from renege_ray.output.image_statistics import ImageStatistics
from renege_ray.output.storage import open_folder
from renege_ray.prompts.refine import load_refiner
from renege_ray.rewards.load import load_scorers

_SECONDS_BETWEEN_FILES = 3.0
_LARGEST_FILE = 512  # rows


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(PipelineJob):
    """See `PipelineJob`."""

    negatives: tuple[ComparedNegative, ...]
    images: str
    """The folder or URI of the images."""


class EvaluateWorker(ChunkWorker[ImageToMake]):
    """Makes and scores images, a row each."""

    item, table = ImageToMake, EvaluationTable
    _job: EvaluationJob

    def _load(self) -> None:
        config, device = self._config, worker_device(self._config.cluster)
        chosen, why = settle(config.model, self._job.cost, self._job.workers, device)
        self._mailbox.post(why)
        scorers = load_scorers(
            scores_of(config).all, device, checkpoints=config.rewards.checkpoints, dtype=config.rewards.dtype,
            compile=chosen.compile is True,
        )  # fmt: skip
        judges = [*scorers.values(), ImageStatistics()]
        loaders = Loaders(
            model=lambda wanted: load_model(wanted.model_copy(update={"compile": chosen.compile}), device),
            refiner=lambda name, folders: load_refiner(name, folders, device),
        )
        self._maker = ImageMaker(config, self._job.negatives, judges, loaders, self._keep)
        self._schema = table_schema(self._maker.names)
        self._files, self._images = open_folder(self._job.images)
        self._folders: set[str] = set()

    def _compute(self, items: Sequence[ImageToMake]) -> None:
        """A file of rows every few seconds: what is lost with a worker is no more than that."""
        unwritten: list[Row] = []
        waiting: dict[str, None] = {}  # in order, and once each: a batch that is too large is made in parts
        written = time.monotonic()

        def about_to(batch: Sequence[ImageToMake]) -> None:
            waiting.update(dict.fromkeys(item.id for item in batch))
            self._note(list(waiting))

        def about_to_read(batch: Sequence[ImageToMake]) -> None:
            self._note([*waiting, *(item.id for item in batch)])

        for row in self._maker.rows(items, about_to, about_to_read):
            unwritten.append(row)
            if len(unwritten) < len(waiting):
                continue  # the batch's other rows are there too
            if time.monotonic() - written >= _SECONDS_BETWEEN_FILES or len(unwritten) >= _LARGEST_FILE:
                self._table.write(unwritten, self._schema)
                unwritten.clear()
                waiting.clear()
                written = time.monotonic()
            if self._asked_to_stop():
                break
        if unwritten:
            self._table.write(unwritten, self._schema)

    def _give_up(self, items: Sequence[ImageToMake], error: str) -> None:
        self._table.write([self._maker.failed(item, error) for item in items], self._schema)

    def _keep(self, path: str, data: bytes) -> None:
        """Store an image, whole or not at all."""
        final = f"{self._images}/{path}"
        folder, _, name = final.rpartition("/")
        if folder not in self._folders:
            self._files.create_dir(folder, recursive=True)
            self._folders.add(folder)
        temporary = f"{folder}/.{name}.part"
        with self._files.open_output_stream(temporary, compression=None) as stream:
            stream.write(data)
        self._files.move(temporary, final)
