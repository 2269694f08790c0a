"""What runs in each actor of per-prompt tuning: the frozen models, and a batch of slots that prompts pass through."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from renege_ray.cluster.compilation import settle
from renege_ray.cluster.pipelines.chunk_worker import ChunkWorker, PipelineJob
from renege_ray.cluster.session.device import worker_device
from renege_ray.config.fingerprint import fingerprint
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.base import TextToImage
from renege_ray.models.load import load_model
from renege_ray.prompts.sources import source_label
from renege_ray.rewards.base import prepare_texts
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.negative import Negative
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.tuning.scores import PromptScores
from renege_ray.tuning.table import PromptToTune, TuningTable, make_row, table_schema
from renege_ray.tuning.tune import PromptTuner, TunedPrompt, tuning_seeds
from renege_ray.version import __version__


@dataclass(frozen=True, kw_only=True)
class TuningJob(PipelineJob):
    """See `PipelineJob`."""

    initial: Negative
    """What `tuning.init` stands for."""


class PromptWorker(ChunkWorker[PromptToTune]):
    """Tunes prompts, a row each, and writes a file for as many as there are slots."""

    item, table = PromptToTune, TuningTable
    _job: TuningJob

    def _load(self) -> None:
        config, device = self._config, worker_device(self._config.cluster)
        chosen, why = settle(config.model, self._job.cost, self._job.workers, device)
        self._mailbox.post(why)
        self._model: TextToImage = load_model(chosen, device)
        self._encoded = encoded = EncodedPrompts(self._model, capacity=1000)  # a prompt is needed while it has a slot
        self._rewards = rewards = Rewards.load(config.rewards, device, compile=chosen.compile is True)
        with self._model.encoding():
            initial = self._job.initial.starting_point(self._model, encoded)
            self._scores = PromptScores(config, self._model, rewards, initial, encoded)
        self._tuner = PromptTuner(config, self._model, rewards, initial, encoded)
        metadata = EmbeddingMetadata(
            text_encoder_hash=self._model.text_encoder_hash,
            text_encoder=self._model.text_encoder_name,
            base_model=self._model.name,
            guidance_scale=config.sampling.guidance_scale,
            reward=rewards.train.name,
            prompts=source_label(config.tuning.prompts),
            steps=config.tuning.steps,
            config_fingerprint=fingerprint(config, "tune_prompts"),
            package_version=__version__,
        )
        self._schema = table_schema(self._scores.names, self._model.embedding_layout, metadata.to_header())

    def _counters(self) -> dict[str, float]:
        return {"slot_steps": self._tuner.slot_steps, "slot_steps_used": self._tuner.slot_steps_used}

    def _compute(self, items: Sequence[PromptToTune]) -> None:
        """Tune, score, and write rows."""
        finished: list[TunedPrompt] = []
        known = {prompt.prompt: prompt for prompt in items}
        self._read_texts(items)

        def goes_on(present: Sequence[str]) -> bool:
            unwritten = [tuned.prompt for tuned in finished]
            self._note([known[text].id for text in [*present, *unwritten]])
            return not self._asked_to_stop()

        for tuned in self._tuner.tune(known, goes_on):
            finished.append(tuned)
            if len(finished) >= self._config.tuning.slots:
                self._write(finished, known)
                finished.clear()
        if finished:
            self._write(finished, known)

    def _read_texts(self, items: Sequence[PromptToTune]) -> None:
        """Encode the prompts of a chunk together: then the text encoders need not be moved for each of them."""
        slots, scorers = self._config.tuning.slots, self._rewards.scorers()
        with self._model.encoding():
            for start in range(0, len(items), slots):
                some = items[start : start + slots]
                self._note([item.id for item in some])
                self._encoded.prepare(item.prompt for item in some)
        prepare_texts(scorers, (item.prompt for item in items))

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

    def _give_up(self, items: Sequence[PromptToTune], error: str) -> None:
        rows = [
            self._row(prompt, TunedPrompt(prompt.prompt, self._scores.initial, 0, 0, True, (), {}, 0.0, error), "")
            for prompt in items
        ]
        self._table.write(rows, self._schema)
