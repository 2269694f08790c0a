"""The tensors that a negative embedding is made of, by the names of diffusers' arguments."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from renege_ray.method.embedding import TENSOR_NAME, NegativeEmbedding


def tensors_of(embedding: NegativeEmbedding) -> dict[str, Tensor]:
    """All parts, each with a leading 1; `TENSOR_NAME`, n itself (1, L, D), is among them."""
    return {TENSOR_NAME: embedding.prompt_embeds}


def with_tensors(embedding: NegativeEmbedding, tensors: Mapping[str, Tensor]) -> NegativeEmbedding:
    """The embedding with other values in its parts."""
    return replace(embedding, prompt_embeds=tensors[TENSOR_NAME])
