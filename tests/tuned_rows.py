"""Tables of tuned prompts with made-up rows, small ones."""

from pathlib import Path

import torch

from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.tuning.scores import score_columns
from renege_ray.tuning.table import PromptToTune, TuningTable, make_row, table_schema
from renege_ray.tuning.tune import TunedPrompt

LAYOUT = EmbeddingLayout(tokens=2, width=4)
HEADER = EmbeddingMetadata(text_encoder_hash="hash", text_encoder="Tiny").to_header()
SCHEMA = table_schema(["reward"], LAYOUT, HEADER)


def prompt(number: int) -> str:
    return f"a fox of number {number}"


def embedding(number: int) -> torch.Tensor:
    """(1, 2, 4), exact in float16."""
    return torch.arange(8.0).view(1, 2, 4) + number


def tuned_row(number: int) -> dict[str, object]:
    """Every fifth has failed; of the others, row k has gained k on fresh seeds."""
    failed = number % 5 == 4
    tuned = TunedPrompt(prompt(number), embedding(number), 3, 2, True, (), {}, 1.0, "no luck" if failed else "")
    scores = dict.fromkeys(score_columns(["reward"]), 0.0) | {"reward_prompt_eval": float(number)}
    return make_row(PromptToTune(prompt(number), f"group {number % 2}"), tuned, scores, ([number, 1], [2]), False)


def write_table(folder: Path | str, files: int, rows: int, first: int = 0) -> TuningTable:
    """So many files of so many rows each; the prompts' numbers begin with `first`."""
    table = TuningTable(str(folder))
    for start in range(first, first + files * rows, rows):
        table.write([tuned_row(number) for number in range(start, start + rows)], SCHEMA)
    return table
