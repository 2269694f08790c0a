"""The table of tuned prompts: a folder of Parquet files, each written whole or not at all.

A row is kept as soon as its file is there, so the folder is the result and the checkpoint in one: what is in it
is done, and nothing else is. It may lie on any filesystem that pyarrow knows.
"""

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from torch import Tensor

from renege_ray.models.layout import EmbeddingLayout
from renege_ray.prompt_scores import score_columns
from renege_ray.prompts import prompt_id
from renege_ray.tune_prompts import TunedPrompt

OK, TRUNCATED, FAILED = "ok", "truncated", "failed"
SUFFIX = ".parquet"
LAYOUT = "embedding_layout"  # the key of the layout among the metadata of a file


@dataclass(frozen=True)
class PromptToTune:
    """A prompt and the group of prompts that it is reported with ("" where there are none)."""

    prompt: str
    category: str = ""

    @property
    def id(self) -> str:
        """Its stable id."""
        return prompt_id(self.prompt)


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


class TuningTable:
    """The files of a table.

    Attributes:
        root: folder or URI.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.filesystem, self.path = pyarrow.fs.FileSystem.from_uri(root)

    def create(self) -> None:
        """Make the folder."""
        self.filesystem.create_dir(self.path, recursive=True)

    def files(self) -> list[str]:
        """The paths of the files that are whole, in the table's filesystem."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.path for info in infos if info.base_name.endswith(SUFFIX) and info.base_name[0] != ".")

    def write(self, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> str:
        """Add rows as a new file, whole or not at all. Returns its path.

        Raises:
            OSError: it cannot be written (the disk is full, say); nothing of it is left then.
        """
        name = f"part-{uuid.uuid4().hex}{SUFFIX}"
        temporary, final = f"{self.path}/.{name}.part", f"{self.path}/{name}"
        self.create()
        try:
            # Embeddings do not get smaller by compression, and plain pages can be read from the mapped file.
            pq.write_table(
                _table(rows, schema),
                temporary,
                filesystem=self.filesystem,
                compression={field.name: "none" if field.name == "embedding" else "zstd" for field in schema},
                use_dictionary=False,
            )
            self.filesystem.move(temporary, final)
        except BaseException:
            self._remove(temporary)
            raise
        return final

    def remove_leftovers(self) -> None:
        """Delete what killed writers have left: everything that is hidden."""
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.base_name.startswith("."):
                self.filesystem.delete_file(info.path)

    def _remove(self, path: str) -> None:
        if self.filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
            self.filesystem.delete_file(path)

    def read(self, files: Sequence[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The content of files, one after the other; all but the embeddings where no columns are named."""
        for path in files:
            with pq.ParquetFile(path, filesystem=self.filesystem) as file:
                wanted = columns or [name for name in file.schema_arrow.names if name != "embedding"]
                yield file.read(columns=list(wanted))

    def ids(self) -> set[str]:
        """The ids of all rows."""
        return {id for table in self.read(self.files(), ["prompt_id"]) for id in table["prompt_id"].to_pylist()}


def _table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = [row.get(field.name, math.nan) for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            stacked = np.stack([_half(value).reshape(field.type.shape) for value in values])
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(stacked).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _half(embedding: object) -> np.ndarray:
    assert isinstance(embedding, Tensor)
    return np.asarray(embedding.half().cpu().numpy())
