"""The table of an evaluation: a row for each image, that is for each prompt and seed under each method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from renege_ray.evaluation.comparison import OK, score_column
from renege_ray.output.parquet_folder import ParquetFolder
from renege_ray.sampling.run_rewards import REWARD

_TEXTS = ("prompt_id", "prompt", "style", "method", "method_key", "model", "refined_prompt", "status", "marks", "error")


@dataclass(frozen=True)
class ImageToMake:
    """One image."""

    prompt_id: str
    prompt: str
    style: str
    """The group of prompts that it is reported with; "" where there are none."""
    seed: int
    """Of the initial noise."""
    pair_index: int
    """The image is the k-th of its prompt."""
    method: int
    """Its place among the job's methods."""
    method_key: str
    """Of what the method makes of a prompt."""

    @property
    def id(self) -> str:
        """Unique in the table."""
        return row_id(self.prompt_id, self.pair_index, self.method_key)


def row_id(prompt_id: str, pair_index: int, method_key: str) -> str:
    """The name of a row."""
    return f"{prompt_id}/{pair_index}/{method_key}"


def table_schema(scores: Sequence[str]) -> pa.Schema:
    """The columns: of each score one called `score/NAME`, NaN where it does not apply or there is no image.

    status: "ok"; "black" or "nan" for images that are wholly so; "failed" where there is none, with its `error`.
    marks: what is special about the row. image: its file below the folder of images, "" where it was not kept.
    seconds: its share of the computing time.
    """
    fields = [
        *((name, pa.string()) for name in (*_TEXTS, "image")),
        ("seed", pa.int64()),
        ("pair_index", pa.int32()),
        ("seconds", pa.float64()),
        *((score_column(name), pa.float64()) for name in scores),
    ]
    return pa.schema(fields)


def make_row(
    item: ImageToMake, label: str, model: str, scores: Mapping[str, float], seconds: float, **texts: str
) -> dict[str, object]:
    """One row; `texts` are further columns, "" where they are not given."""
    return {
        **dict.fromkeys((*_TEXTS, "image"), ""),
        "status": OK,
        **{name: getattr(item, name) for name in ("prompt_id", "prompt", "style", "seed", "pair_index", "method_key")},
        "method": label,
        "model": model,
        "seconds": seconds,
        **{score_column(name): value for name, value in scores.items()},
        **texts,
    }


def score_names(columns: Sequence[str]) -> list[str]:
    """The scores that columns are of."""
    prefix = score_column("")
    return [column.removeprefix(prefix) for column in columns if column.startswith(prefix)]


def with_weighted_reward(table: pd.DataFrame, weights: Mapping[str, float]) -> pd.DataFrame:
    """The table with a further column, the weighted sum of several scores."""
    total = sum(weight * table[score_column(name)] for name, weight in weights.items())
    return table.assign(**{score_column(REWARD): total})


class EvaluationTable(ParquetFolder):
    """The files of a table of images."""

    def ids(self) -> set[str]:
        """The ids of all rows."""
        columns = ["prompt_id", "pair_index", "method_key"]
        return {row_id(**row) for rows in self.rows(columns) for row in rows.to_pylist()}

    def frame(self, labels: Mapping[str, str], wanted: set[str]) -> pd.DataFrame:
        """The rows of some ids, under the labels {method key: label} that the methods have now, in a fixed order."""
        found = pd.concat([rows.to_pandas() for rows in self.rows()], ignore_index=True)
        ids = [row_id(*row) for row in zip(found["prompt_id"], found["pair_index"], found["method_key"], strict=True)]
        found = found[pd.Series(ids).isin(wanted)].assign(method=lambda rows: rows["method_key"].map(labels))
        place = {label: i for i, label in enumerate(labels.values())}
        order = found["method"].map(place)
        return (
            found.assign(_order=order)
            .sort_values(["prompt_id", "pair_index", "_order"])
            .drop(columns="_order")
            .reset_index(drop=True)
        )
