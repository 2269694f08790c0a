"""A worker of per-prompt tuning that computes nothing: its rows have random numbers for scores and embedding."""

from collections.abc import Sequence

import torch

from renege_ray.cluster.pipelines.tuning_worker import PromptWorker
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.tuning.scores import score_columns
from renege_ray.tuning.table import PromptToTune, make_row, table_schema
from renege_ray.tuning.tune import TunedPrompt, tuning_seeds

SCORES = ("reward", "toy", "toy_held_out")
LAYOUT = EmbeddingLayout(tokens=8, width=16)


class IdleWorker(PromptWorker):
    """Notes, writes and stops as a real one does."""

    def _load(self) -> None:
        header = EmbeddingMetadata(text_encoder_hash="none", text_encoder="none").to_header()
        self._schema = table_schema(SCORES, LAYOUT, header)
        self._columns = score_columns(SCORES)

    def _counters(self) -> dict[str, float]:
        return {}

    def _compute(self, items: Sequence[PromptToTune]) -> None:
        slots = self._config.tuning.slots
        for start in range(0, len(items), slots):
            if self._asked_to_stop():
                return
            present = items[start : start + slots]
            self._note([prompt.id for prompt in present])
            self._table.write(list(map(self._idle_row, present)), self._schema)

    def _give_up(self, items: Sequence[PromptToTune], error: str) -> None:
        raise RuntimeError(error)

    def _idle_row(self, prompt: PromptToTune) -> dict[str, object]:
        generator = torch.Generator().manual_seed(int(prompt.id, 16) % 2**63)
        embedding = torch.randn(1, *LAYOUT.packed_shape, generator=generator)
        values = torch.rand(len(self._columns), generator=generator).tolist()
        tuned = TunedPrompt(prompt.prompt, embedding, 3, 5, True, (), {}, 0.0)
        scores = dict(zip(self._columns, values, strict=True))
        return make_row(prompt, tuned, scores, tuning_seeds(self._config, prompt.prompt), False)
