"""The embeddings of a table of tuned prompts, looked up by prompt or id.

    with PromptEmbeddings.open("outputs/RUN") as embeddings:
        images = pipe(prompts, **embeddings.for_pipeline(pipe, prompts)).images

(for PixArt-alpha, without the first argument: see `renege_ray.NegativeEmbedding.for_pipeline`).
"""

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from renege_ray.embeddings.negative_embedding import NegativeEmbedding, pipeline_arguments
from renege_ray.embeddings.prompt_index import PromptIndex
from renege_ray.embeddings.tables import find_table
from renege_ray.errors import UserError, first_line
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.output.parquet_folder import base_name
from renege_ray.prompts.sources import prompt_id
from renege_ray.tuning.table import LAYOUT, TuningTable

_GROUPS_IN_MEMORY = 4

Result = TypeVar("Result")


@dataclass(frozen=True)
class Match:
    """The prompt whose embedding is used, and how alike it is: 1 for the prompt itself, else the share of the words
    of both that are in both (Jaccard).
    """

    prompt: str
    similarity: float


class PromptEmbeddings:
    """The rows of a table that have an embedding of their own; failed prompts have none.

    Prompts and ids are kept in memory; embeddings are read from the mapped files when they are asked for, a row group
    (some MB) at a time. The table may grow, and its files be merged, meanwhile: what was there stays to be found.

    Attributes:
        prompts: {id: prompt}, in the order of the table.
        metadata: where the embeddings came from.
        layout: what they are made of; here they are packed tensors.
    """

    def __init__(self, table: TuningTable) -> None:
        """Read the index. Raises UserError where there is nothing to look up."""
        self._table = table
        self._ends: dict[str, np.ndarray] = {}  # of the row groups of a file, counted in rows
        self._groups: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        try:
            self.prompts = PromptIndex(table)
            if not self.prompts:
                raise UserError(f"{table.root} holds no tuned prompts; name the output folder of tune-prompts")
            header = pq.read_schema(self.prompts.files[0], filesystem=table.filesystem).metadata
            texts = {key.decode(): value.decode() for key, value in header.items() if not key.startswith(b"ARROW")}
            self.metadata = EmbeddingMetadata.from_header(texts)
            self.layout = EmbeddingLayout(**json.loads(texts[LAYOUT]))
        except UserError:
            raise
        except (pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{table.root} holds a damaged or foreign Parquet file: {error}") from None
        except OSError as error:
            raise UserError(f"{table.root} cannot be read ({first_line(error)})") from None

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open the table of a run: its output folder, its folder in a storage, or the table's own folder or URI.

        Raises:
            UserError: there is none, or the folder holds several; the storage cannot be read.
        """
        return cls(TuningTable(find_table(str(folder))))

    @property
    def root(self) -> str:
        """The table's own folder or URI."""
        return self._table.root

    def state(self) -> str:
        """Another text whenever the content is another: files are added or removed, and what is merged is the same."""
        names = [name for path in self._table.files() for name in self._table.sources(path) or [base_name(path)]]
        return hashlib.sha256(",".join(sorted(names)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    def __contains__(self, prompt: object) -> bool:
        """Whether this prompt (or id) has an embedding of its own."""
        return isinstance(prompt, str) and self._id(prompt) in self.prompts

    def __getitem__(self, prompt: str) -> Tensor:
        """The embedding of a prompt or an id, packed, (1, L, D) float16. Raises KeyError where it has none."""

        def read(path: str, row: int) -> Tensor:
            group, place = self._group_of(path, row)
            return torch.from_numpy(self._group(path, group)[place].copy()).unsqueeze(0)

        return self._where_it_is(prompt, read)

    def rows(self, prompts: Iterable[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of the rows of prompts or ids, one after the other. Raises KeyError where there is no row."""

        def read(path: str, row: int) -> dict[str, Any]:
            group, place = self._group_of(path, row)
            with self._open(path) as file:
                found: dict[str, Any] = file.read_row_group(group, list(columns)).slice(place, 1).to_pylist()[0]
            return found

        for prompt in prompts:
            yield self._where_it_is(prompt, read)

    def match(self, prompt: str) -> Match:
        """The prompt itself where it has an embedding, else the one that shares most words with it.

        Raises:
            UserError: no prompt shares any word with it.
        """
        if prompt in self:
            return Match(self.prompts[self._id(prompt)], 1.0)
        nearest = self.prompts.nearest(prompt)
        if nearest is None:
            raise UserError(f"{prompt[:80]!r} shares no word with any of the {len(self)} prompts of {self._table.root}")
        return Match(*nearest)

    def batch(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings of prompts, packed, (B, L, D) float32. A prompt without one takes that of the nearest
        prompt, with a warning that says so.
        """
        found = []
        for prompt in prompts:
            match = self.match(prompt)
            if prompt not in self:
                warnings.warn(
                    f"{prompt!r} has not been tuned; using the embedding of {match.prompt!r} "
                    f"({match.similarity:.0%} of their words are common)",
                    stacklevel=2,
                )
            found.append(self[match.prompt])
        return torch.cat(found).float()

    def for_pipeline(
        self, pipe: Any, prompts: str | Sequence[str], *, tokens: int | None = None, text_encoder: str | None = None
    ) -> dict[str, Any]:
        """The keyword arguments for a diffusers pipeline that is called with these prompts, as
        `NegativeEmbedding.for_pipeline` gives them, each prompt with its own negative.

        Raises:
            UserError: the pipeline has another text encoder; or as for `match`.
        """
        packed = self.batch([prompts] if isinstance(prompts, str) else prompts)
        NegativeEmbedding(self.layout.unpack_negative(packed[:1]), self.metadata).check_pipeline(pipe, text_encoder)
        return pipeline_arguments(pipe, self.layout.unpack_negative(packed), prompts, tokens)

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], text_encoder_hash: str, text_encoder: str) -> None:
        """Check that the embeddings belong to a text encoder; see `NegativeEmbedding.check_fits`."""
        first = NegativeEmbedding(self.layout.unpack_negative(self[next(iter(self.prompts))]), self.metadata)
        first.check_fits(shapes, text_encoder_hash, text_encoder)

    def close(self) -> None:
        """Forget what was read."""
        self._groups.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _id(self, prompt: str) -> str:
        return prompt if prompt in self.prompts else prompt_id(prompt)

    def _where_it_is(self, prompt: str, read: Callable[[str, int], Result]) -> Result:
        """What `read` makes of the file and the row of a prompt; once more where the file has been merged meanwhile."""
        key = self._id(prompt)
        try:
            return read(*self.prompts.row(key))
        except FileNotFoundError:
            self.prompts = PromptIndex(self._table)
            return read(*self.prompts.row(key))

    def _open(self, path: str) -> pq.ParquetFile:
        local = isinstance(self._table.filesystem, pa.fs.LocalFileSystem)
        return pq.ParquetFile(path, memory_map=local, filesystem=None if local else self._table.filesystem)

    def _group_of(self, path: str, row: int) -> tuple[int, int]:
        """The row group of a row of a file, and its place there."""
        if path not in self._ends:
            with self._open(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._ends[path] = np.cumsum(sizes)
        group = int(np.searchsorted(self._ends[path], row, side="right"))
        return group, row - (int(self._ends[path][group - 1]) if group else 0)

    def _group(self, path: str, group: int) -> np.ndarray:
        """The embeddings of one row group, (rows, L, D) float16; the last few stay in memory."""
        key = path, group
        if key not in self._groups:
            with self._open(path) as file:
                column = file.read_row_group(group, columns=["embedding"])["embedding"].combine_chunks()
            self._groups[key] = column.to_numpy_ndarray()
            if len(self._groups) > _GROUPS_IN_MEMORY:
                self._groups.popitem(last=False)
        return self._groups[key]
