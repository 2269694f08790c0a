"""The table of tuned prompts: a row each, with its embedding, what was measured, and what went wrong."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from renege_ray.models.layout import EmbeddingLayout
from renege_ray.output.parquet_folder import ParquetFolder
from renege_ray.prompts.sources import prompt_id
from renege_ray.tuning.scores import score_columns
from renege_ray.tuning.tune import TunedPrompt

OK, TRUNCATED, FAILED = "ok", "truncated", "failed"
LAYOUT = "embedding_layout"  # the key of the layout among the metadata of a file


@dataclass(frozen=True, slots=True)
class PromptToTune:
    """A prompt and the group of prompts that it is reported with ("" where there are none)."""

    prompt: str
    category: str = ""
    id: str = field(init=False)
    """Its stable id; of a million prompts it is asked for again and again."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", prompt_id(self.prompt))


def table_schema(scores: Sequence[str], layout: EmbeddingLayout, header: Mapping[str, str]) -> pa.Schema:
    """The columns of the table. Embeddings are stored packed; their `layout` and `header`, which is an
    `EmbeddingMetadata.to_header()`, go into every file.
    """
    fields = [
        *((name, pa.string()) for name in ("prompt_id", "prompt", "category", "status", "error")),
        *((name, pa.float64()) for name in score_columns(scores)),
        ("steps", pa.int32()),
        ("stopped_early", pa.bool_()),
        ("best_step", pa.int32()),
        ("seconds", pa.float64()),
        ("tune_seeds", pa.list_(pa.int64())),
        ("eval_seeds", pa.list_(pa.int64())),
        ("embedding", pa.fixed_shape_tensor(pa.float16(), layout.packed_shape)),
    ]
    return pa.schema(fields, metadata={**header, LAYOUT: json.dumps(asdict(layout))})


def make_row(
    prompt: PromptToTune,
    tuned: TunedPrompt,
    scores: Mapping[str, float] | str,
    seeds: tuple[Sequence[int], Sequence[int]],
    truncated: bool,
) -> dict[str, object]:
    """One row. `scores`: by column, or why there are none; a failed prompt has the initial embedding and no scores
    (pyarrow cannot read a missing tensor back).
    """
    error = tuned.error or (scores if isinstance(scores, str) else "")
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.prompt,
        "category": prompt.category,
        "status": FAILED if error else TRUNCATED if truncated else OK,
        "error": error,
        "steps": tuned.steps,
        "stopped_early": tuned.stopped_early,
        "best_step": tuned.best_step,
        "seconds": tuned.seconds,
        "tune_seeds": list(seeds[0]),
        "eval_seeds": list(seeds[1]),
        "embedding": tuned.embedding,
        **({} if error or isinstance(scores, str) else scores),
    }


class TuningTable(ParquetFolder):
    """The files of a table of tuned prompts, a row each."""

    def ids(self) -> set[str]:
        """The ids of all rows."""
        return {id for rows in self.rows(["prompt_id"]) for id in rows["prompt_id"].to_pylist()}
