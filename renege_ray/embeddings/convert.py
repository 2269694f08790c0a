"""`convert`: another program's embedding as safetensors with metadata; or another type of number."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import NegativeEmbedding
from renege_ray.models.load import identify_text_encoder
from renege_ray.models.toy import EMBEDDED_MODELS

DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Conversion:
    """What is asked for."""

    source: Path
    """The file."""
    target: Path
    """The safetensors file to write."""
    metadata: dict[str, Any]
    """Fields of `EmbeddingMetadata` to set; the others stay as they are in the source."""
    text_encoder: str | None = None
    """A model's folder in diffusers' format, 'toy', or a name; None to leave it as it is."""
    dtype: str | None = None
    """Of what is written; None for that of the source."""
    force: bool = False
    """Replace `target` if it exists."""


def convert(wanted: Conversion) -> tuple[NegativeEmbedding, str]:
    """Write `target`, and say in a line what is not known of it ("" where nothing is missing).

    Raises:
        UserError: `target` exists, the source is no embedding or does not fit the text encoder, or its values do not
            fit the type.
    """
    if wanted.target.exists() and not wanted.force:
        raise UserError(f"{wanted.target} exists; name another file, or give --force to replace it")
    embedding = NegativeEmbedding.load(wanted.source)
    metadata = replace(embedding.metadata, **wanted.metadata)
    embedding = replace(embedding, metadata=metadata)
    if wanted.text_encoder is not None:
        embedding = _with_text_encoder(embedding, wanted.text_encoder)
    if wanted.dtype is not None:
        embedding = _as_dtype(embedding, wanted.dtype)
    embedding.save(wanted.target)
    if embedding.metadata.text_encoder_hash:
        return embedding, ""
    return embedding, (
        "the text encoder's hash is not known, so the file is checked against a model by its shape alone; "
        "--text-encoder FOLDER, with a model's folder on this machine, adds it"
    )


def _with_text_encoder(embedding: NegativeEmbedding, text_encoder: str) -> NegativeEmbedding:
    """Store which encoder the embedding is for: its hash where it is at hand, else its name alone."""
    path = Path(text_encoder).expanduser()
    if text_encoder not in EMBEDDED_MODELS and not path.is_dir():
        if text_encoder.startswith((".", "/", "~")):
            raise UserError(f"--text-encoder: there is no folder {text_encoder}; give a model in diffusers' format")
        return replace(embedding, metadata=replace(embedding.metadata, text_encoder=text_encoder))
    encoder = identify_text_encoder(ModelConfig(id=text_encoder))
    layout = encoder.layout.fitting(embedding.prompt_embeds.shape[1])
    embedding.check_fits(layout.shapes, encoder.hash, encoder.name)
    metadata = replace(embedding.metadata, text_encoder=encoder.name, text_encoder_hash=encoder.hash)
    return replace(embedding, metadata=metadata)


def _as_dtype(embedding: NegativeEmbedding, dtype: str) -> NegativeEmbedding:
    tensors = embedding.tensors
    cast = {name: t.to(DTYPES[dtype]) if t.is_floating_point() else t for name, t in tensors.items()}
    if not all(torch.isfinite(tensor).all() for tensor in cast.values()):
        largest = max(float(tensor.abs().max()) for tensor in tensors.values())
        raise UserError(f"--dtype: values up to {largest:.4g} do not fit {dtype}; use float32")
    return replace(embedding, tensors=cast)
