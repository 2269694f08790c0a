"""The embeddings of a table of tuned prompts, looked up by prompt or id.

    with PromptEmbeddings.open("outputs/RUN") as embeddings:
        images = pipe(prompts, **embeddings.for_pipeline(pipe, prompts)).images

(for PixArt-alpha, without the first argument: see `renege_ray.NegativeEmbedding.for_pipeline`).
"""

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from renege_ray.embeddings.negative_embedding import NegativeEmbedding
from renege_ray.embeddings.tables import find_table
from renege_ray.errors import UserError, first_line
from renege_ray.method.embedding import EmbeddingMetadata
from renege_ray.models.layout import EmbeddingLayout
from renege_ray.prompts.sources import prompt_id
from renege_ray.tuning.table import FAILED, LAYOUT, TuningTable

_FILES_IN_MEMORY = 4


@dataclass(frozen=True)
class Match:
    """The prompt whose embedding is used, and how alike it is: 1 for the prompt itself, else the share of the words
    of both that are in both (Jaccard).
    """

    prompt: str
    similarity: float


class PromptEmbeddings:
    """The rows of a table that have an embedding of their own; failed prompts have none.

    Prompts and ids are kept in memory; embeddings are read from the mapped files when they are asked for, a file (some
    rows) at a time.

    Attributes:
        prompts: {id: prompt}.
        metadata: where the embeddings came from.
        layout: what they are made of; here they are packed tensors.
    """

    def __init__(self, table: TuningTable) -> None:
        """Read the index. Raises UserError where there is nothing to look up."""
        self._table = table
        self._places: dict[str, tuple[str, int]] = {}
        self.prompts: dict[str, str] = {}
        self._loaded: OrderedDict[str, np.ndarray] = OrderedDict()
        self._words: dict[str, frozenset[str]] = {}
        try:
            files = table.files()
            for path, rows in zip(files, table.read(files, ["prompt_id", "prompt", "status"]), strict=True):
                for place, row in enumerate(rows.to_pylist()):
                    if row["status"] != FAILED:
                        self._places[row["prompt_id"]] = (path, place)
                        self.prompts[row["prompt_id"]] = row["prompt"]
            if not self.prompts:
                raise UserError(f"{table.root} holds no tuned prompts; name the output folder of tune-prompts")
            header = pq.read_schema(files[0], filesystem=table.filesystem).metadata
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
        """Another text whenever the content is another: files are added or removed, but never rewritten."""
        names = ",".join(path.rpartition("/")[2] for path in self._table.files())
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    def __contains__(self, prompt: object) -> bool:
        """Whether this prompt (or id) has an embedding of its own."""
        return isinstance(prompt, str) and self._id(prompt) in self._places

    def __getitem__(self, prompt: str) -> Tensor:
        """The embedding of a prompt or an id, packed, (1, L, D) float16. Raises KeyError where it has none."""
        path, place = self._places[self._id(prompt)]
        return torch.from_numpy(self._file(path)[place].copy()).unsqueeze(0)

    def rows(self, prompts: Iterable[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of the rows of prompts or ids, one after the other. Raises KeyError where there is no row."""
        for prompt in prompts:
            path, place = self._places[self._id(prompt)]
            (table,) = self._table.read([path], columns)
            yield table.slice(place, 1).to_pylist()[0]

    def match(self, prompt: str) -> Match:
        """The prompt itself where it has an embedding, else the one that shares most words with it.

        Raises:
            UserError: no prompt shares any word with it.
        """
        if prompt in self:
            return Match(self.prompts[self._id(prompt)], 1.0)
        if not self._words:
            self._words = {key: _words(text) for key, text in self.prompts.items()}
        words = _words(prompt)
        alike = {key: len(words & other) / len(words | other) for key, other in self._words.items() if words & other}
        if not alike:
            raise UserError(f"{prompt[:80]!r} shares no word with any of the {len(self)} prompts of {self._table.root}")
        nearest = max(alike, key=lambda key: alike[key])
        return Match(self.prompts[nearest], alike[nearest])

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
    ) -> dict[str, Tensor | None]:
        """The keyword arguments for a diffusers pipeline that is called with these prompts, as
        `NegativeEmbedding.for_pipeline` gives them, each prompt with its own negative.

        Raises:
            UserError: the pipeline has another text encoder; or as for `match`.
        """
        packed = self.batch([prompts] if isinstance(prompts, str) else prompts)
        first = NegativeEmbedding(self.layout.unpack(packed[:1]), self.metadata)
        arguments = first.for_pipeline(pipe, prompts, tokens=tokens, text_encoder=text_encoder)
        for name, tensor in self.layout.unpack(packed).items():
            same = arguments[name]  # the first embedding in every row: of the right size, dtype and device
            assert same is not None
            windows = same.shape[1] // tensor.shape[1]
            arguments[name] = tensor.repeat(1, windows, *[1] * (tensor.ndim - 2)).to(same)
        return arguments

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]], text_encoder_hash: str, text_encoder: str) -> None:
        """Check that the embeddings belong to a text encoder; see `NegativeEmbedding.check_fits`."""
        first = NegativeEmbedding(self.layout.unpack(self[next(iter(self.prompts))]), self.metadata)
        first.check_fits(shapes, text_encoder_hash, text_encoder)

    def close(self) -> None:
        """Forget what was read."""
        self._loaded.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _id(self, prompt: str) -> str:
        return prompt if prompt in self._places else prompt_id(prompt)

    def _file(self, path: str) -> np.ndarray:
        """The embeddings of one file, (rows, L, D) float16; the last few files stay in memory."""
        if path not in self._loaded:
            local = isinstance(self._table.filesystem, pa.fs.LocalFileSystem)
            with pq.ParquetFile(path, memory_map=local, filesystem=None if local else self._table.filesystem) as file:
                column = file.read(columns=["embedding"])["embedding"].combine_chunks()
            self._loaded[path] = column.to_numpy_ndarray()
            if len(self._loaded) > _FILES_IN_MEMORY:
                self._loaded.popitem(last=False)
        return self._loaded[path]


def _words(text: str) -> frozenset[str]:
    return frozenset("".join(c if c.isalnum() else " " for c in text.casefold()).split())
