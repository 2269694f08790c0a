"""What runs in each actor of per-prompt tuning: load the frozen models once, then tune chunk after chunk.

The actor writes finished rows itself, a file as soon as there are as many as it has slots, and gives Ray Data the
figures of a chunk alone. So a row is safe within seconds of being done, whatever happens to the chunk's task; and
what Ray does again after a worker's death is what has no row yet.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

import renege_ray
from renege_ray.cluster.kill_journal import MAX_KILLS, KillJournal, counted_start
from renege_ray.cluster.mailbox import Mailbox
from renege_ray.config import RunConfig
from renege_ray.effects import fingerprint
from renege_ray.encoded_prompts import EncodedPrompts
from renege_ray.errors import describe
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models import TextToImage, load_model
from renege_ray.prompt_scores import PromptScores
from renege_ray.prompts import source_label
from renege_ray.train_global import Rewards
from renege_ray.tune_prompts import PromptTuner, TunedPrompt, tuning_seeds
from renege_ray.tuning_table import PromptToTune, TuningTable, make_row, table_schema

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class TuningJob:
    """All that a worker needs; it travels to machines that may not see the driver's files.

    initial: the embedding of `tuning.init` where that names a file. root: of the table. session: of this start of the
    job; deaths of workers count within it. threads: torch threads on the CPU.
    """

    config: RunConfig
    initial: Tensor | None
    root: str
    session: str
    threads: int

    @property
    def mailbox(self) -> Mailbox:
        """Where the driver asks to stop, and workers say why they failed."""
        return Mailbox(f"{self.root}/{self.session}")


def chunk_table(prompts: Sequence[PromptToTune]) -> pa.Table:
    """A chunk as a block of Ray Data."""
    return pa.table({"prompt": [p.prompt for p in prompts], "category": [p.category for p in prompts]})


def initial_embedding(config: RunConfig, loaded: Tensor | None, model: TextToImage, encoded: EncodedPrompts) -> Tensor:
    """Candidate 0 of every prompt, (1, L, D) on the CPU: the file's, or the named text's."""
    if loaded is None:
        loaded = encoded([{"null": "", "handwritten": config.prompts.handwritten[0]}[config.tuning.init]])
    return model.starting_point(loaded.float().cpu())


def worker_device() -> torch.device:
    """The GPU that Ray has given to this process, else the CPU."""
    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


class PromptWorker:
    """A callable for `Dataset.map_batches`: chunks of prompts in, one line of figures a chunk out."""

    def __init__(self, job: TuningJob) -> None:
        """Load everything."""
        self._job, self._config, self._table = job, job.config, TuningTable(job.root)
        started = time.monotonic()
        with self._telling_the_driver(), self._counted_start():
            self._load()
        self._load_seconds = time.monotonic() - started
        self._next_look, self._stopping = 0.0, False

    def _load(self) -> None:
        config, device = self._config, worker_device()
        torch.set_num_threads(self._job.threads)
        self._model: TextToImage = load_model(config.model, device)
        encoded = EncodedPrompts(self._model, capacity=1000)  # a prompt is needed for as long as it has a slot
        rewards = Rewards.load(config.rewards, device)
        initial = initial_embedding(config, self._job.initial, self._model, encoded)
        self._tuner = PromptTuner(config, self._model, rewards, initial, encoded)
        self._scores = PromptScores(config, self._model, rewards, initial, encoded)
        metadata = EmbeddingMetadata(
            text_encoder_hash=self._model.text_encoder_hash,
            text_encoder=self._model.text_encoder_name,
            base_model=self._model.name,
            guidance_scale=config.sampling.guidance_scale,
            reward=rewards.train.name,
            prompts=source_label(config.tuning.prompts),
            steps=config.tuning.steps,
            config_fingerprint=fingerprint(config, "tune_prompts"),
            package_version=renege_ray.__version__,
        )
        self._schema = table_schema(self._scores.names, self._model.embedding_layout, metadata.to_header())

    def _counted_start(self) -> AbstractContextManager[None]:
        _, workers = self._config.cluster.worker_range
        return counted_start(self._table.filesystem, self._table.path, self._job.session, workers)

    @contextmanager
    def _telling_the_driver(self) -> Iterator[None]:
        """Ray's own account of a worker's exception is long, and does not begin with its cause."""
        try:
            yield
        except Exception as error:
            self._job.mailbox.post(describe(error))
            raise

    def __call__(self, chunk: pa.Table) -> dict[str, np.ndarray]:
        """Tune a chunk, but for what has a row already."""
        with self._telling_the_driver():
            return self._tune_chunk([PromptToTune(row["prompt"], row["category"]) for row in chunk.to_pylist()])

    def _tune_chunk(self, prompts: Sequence[PromptToTune]) -> dict[str, np.ndarray]:
        started, before = time.monotonic(), (self._tuner.slot_steps, self._tuner.slot_steps_used)
        self._journal = KillJournal(
            self._table.filesystem, f"{self._table.path}/.kills-{self._job.session}-{prompts[0].id}.json"
        )
        done = self._table.ids() if self._journal.restarted else set()
        missing = [prompt for prompt in prompts if prompt.id not in done]
        kills = self._journal.kills
        self._give_up([prompt for prompt in missing if kills.get(prompt.id, 0) >= MAX_KILLS])
        for suspect in missing:
            if 0 < kills.get(suspect.id, 0) < MAX_KILLS:
                self._tune([suspect])
        self._tune([prompt for prompt in missing if not kills.get(prompt.id, 0)])
        if not self._stopping:
            self._journal.close()
        figures = {
            "rows": len(missing),
            "seconds": time.monotonic() - started,
            "load_seconds": self._load_seconds,
            "slot_steps": self._tuner.slot_steps - before[0],
            "slot_steps_used": self._tuner.slot_steps_used - before[1],
        }
        self._load_seconds = 0.0  # told once
        return {name: np.array([float(value)]) for name, value in figures.items()}

    def _tune(self, prompts: Sequence[PromptToTune]) -> None:
        """Tune, score, and write rows, a file for as many as there are slots."""
        finished: list[TunedPrompt] = []
        known = {prompt.prompt: prompt for prompt in prompts}

        def goes_on(present: Sequence[str]) -> bool:
            unwritten = [tuned.prompt for tuned in finished]
            self._journal.note([known[text].id for text in [*present, *unwritten]])
            return not self._asked_to_stop()

        for tuned in self._tuner.tune(known, goes_on):
            finished.append(tuned)
            if len(finished) >= self._config.tuning.slots:
                self._write(finished, known)
                finished.clear()
        if finished:
            self._write(finished, known)

    def _asked_to_stop(self) -> bool:
        if not self._stopping and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            self._stopping = self._job.mailbox.stop_requested()
        return self._stopping

    def _write(self, finished: Sequence[TunedPrompt], known: dict[str, PromptToTune]) -> None:
        started = time.monotonic()
        good = [tuned for tuned in finished if not tuned.error]
        scores = dict(zip((tuned.prompt for tuned in good), self._scores.score(good), strict=True))
        share = (time.monotonic() - started) / len(finished)
        rows = [self._row(known[tuned.prompt], tuned, scores.get(tuned.prompt, ""), share) for tuned in finished]
        self._table.write(rows, self._schema)

    def _row(
        self, prompt: PromptToTune, tuned: TunedPrompt, scores: dict[str, float] | str, scoring_seconds: float = 0.0
    ) -> dict[str, object]:
        truncated = bool(self._model.count_truncated([prompt.prompt])) if not tuned.error else False
        row = make_row(prompt, tuned, scores, tuning_seeds(self._config, prompt.prompt), truncated)
        return row | {"seconds": tuned.seconds + scoring_seconds}

    def _give_up(self, prompts: Sequence[PromptToTune]) -> None:
        """Write failed rows for prompts that kill their workers."""
        error = f"killed its worker {MAX_KILLS} times"
        rows = [
            self._row(prompt, TunedPrompt(prompt.prompt, self._scores.initial, 0, 0, True, (), {}, 0.0, error), "")
            for prompt in prompts
        ]
        if rows:
            self._table.write(rows, self._schema)
