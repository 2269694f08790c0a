"""A worker of per-prompt tuning that computes nothing: its rows have random numbers for scores and embedding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from renege_ray.cluster.pipelines.tuning_worker import PromptWorker
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.output.parquet_folder import storing
from renege_ray.tuning.scores import score_columns
from renege_ray.tuning.table import PromptToTune, make_row, table_schema
from renege_ray.tuning.tune import TunedPrompt, tuning_seeds

SCORES = ("reward", "toy", "toy_held_out")
LAYOUT = EmbeddingLayout(tokens=8, width=16)


def idle_schema() -> pa.Schema:
    """Of its table."""
    header = EmbeddingMetadata(text_encoder_hash="none", text_encoder="none").to_header()
    return table_schema(SCORES, LAYOUT, header)


def write_rows(path: str, prompts: Sequence[str]) -> None:
    """A file with a row for each of some prompts, as if they had been computed and merged before."""
    rows, schema, generator = len(prompts), idle_schema(), np.random.default_rng(len(path))
    columns: dict[str, Any] = dict.fromkeys(("category", "error"), [""] * rows)
    columns |= {
        "prompt_id": [PromptToTune(prompt).id for prompt in prompts],
        "prompt": prompts,
        "status": ["ok"] * rows,
    }
    columns |= {name: generator.random(rows) for name in (*score_columns(SCORES), "seconds")}
    columns |= {"steps": [3] * rows, "best_step": [2] * rows, "stopped_early": [True] * rows}
    columns |= {"tune_seeds": [[1, 2]] * rows, "eval_seeds": [[3, 4]] * rows}
    arrays = [pa.array(columns[field.name], field.type) for field in schema if field.name != "embedding"]
    embeddings = pa.FixedShapeTensorArray.from_numpy_ndarray(
        generator.random((rows, *LAYOUT.packed_shape)).astype(np.float16)
    )
    table = pa.Table.from_arrays([*arrays, embeddings.cast(schema.field("embedding").type)], schema=schema)
    pq.write_table(table, path, **storing(schema))


class IdleWorker(PromptWorker):
    """Notes, writes and stops as a real one does."""

    def _load(self) -> None:
        self._schema = idle_schema()
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
