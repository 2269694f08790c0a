"""A negative: from what a user writes to the embedding that the guidance takes.

    null            what the model's pipeline takes where it is given no negative
    handwritten     the first of `prompts.handwritten`
    FILE            an embedding that was learned for all prompts
    FOLDER          the embeddings of tuned prompts (see `renege_ray.embeddings.names`); also a URI
    anything else   a negative prompt

A training or a tuning starts from one of the first three (`--init`), `jobs/generate.py` takes all, and in an evaluation
the kind stands before the value (`--method global=FILE`). Files are read and checked before a model is loaded; once it
is there, `packed` is the embedding, and `starting_point` the one that learning starts from.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import PICKLE_SUFFIXES, NegativeEmbedding
from renege_ray.models.base import TextToImage
from renege_ray.models.load import identify_text_encoder
from renege_ray.models.text_encoder import TextEncoderIdentity
from renege_ray.output.names import is_unicode
from renege_ray.output.storage import is_uri
from renege_ray.sampling.encoded_prompts import EncodedPrompts

EMBEDDING_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
Encoder = Callable[[], TextEncoderIdentity]  # read when it is asked for


@dataclass(frozen=True)
class Negative:
    """A negative prompt, or an embedding; with neither, the model's null embedding."""

    text: str | None = None
    """Of the negative prompt."""
    embedding: Tensor | None = None
    """Packed, (1, L, D) float32, or one for each image that is to be made."""

    def packed(self, encoded: EncodedPrompts) -> Tensor:
        """n, (1, L, D) float32 on the CPU; as many as `embedding` has."""
        if self.embedding is not None:
            return self.embedding
        return (encoded.null() if self.text is None else encoded.negatives([self.text])).float().cpu()

    def starting_point(self, model: TextToImage, encoded: EncodedPrompts) -> Tensor:
        """n_0, (1, L, D) float32 on the CPU. Of null, it is the empty text: a pipeline's zeros cannot be learned from
        (see `StableDiffusionXL`).
        """
        start = self if self.embedding is not None else Negative(self.text or "")
        return model.starting_point(start.packed(encoded))


NULL = Negative()


def kind_of(words: str) -> tuple[str, str]:
    """What words stand for, and the value behind it: ("null" | "handwritten", "") or ("global" | "prompt" | "text",
    words).
    """
    if words in ("null", "handwritten"):
        return words, ""
    # Unlike pathlib's, these take any text, however long.
    if Path(words).suffix.lower() in EMBEDDING_SUFFIXES or os.path.isfile(words):
        return "global", words
    return "prompt" if os.path.isdir(words) or is_uri(words) else "text", words


def read_negative(kind: str, value: str, config: RunConfig, encoder: Encoder) -> Negative:
    """The negative of a kind, all but "prompt"; `config` has the handwritten one.

    Raises:
        UserError: a file that is missing or damaged (then the encoder is not even looked at), or does not fit it; a
            text that is none.
    """
    if kind == "global":
        embedding = NegativeEmbedding.load(value)
        identity = encoder()
        layout = identity.layout.fitting(embedding.prompt_embeds.shape[1])
        embedding.check_fits(layout.shapes, identity.hash, identity.name)
        return Negative(embedding=layout.pack(embedding.tensors))
    if not is_unicode(value):
        raise UserError(f"the negative prompt {value!r} is not UTF-8; give it from a terminal or a script that is")
    if kind == "handwritten":
        return Negative(value or config.prompts.handwritten[0])
    return Negative(value if kind == "text" else None)


def read_start(words: str, field: str, config: RunConfig, encoder: Encoder | None = None) -> Negative:
    """What a setting of the name `field` says to start from, for the configured model or another `encoder`.

    Raises:
        UserError: it is neither null, handwritten, nor a file, or the file does not fit the model.
    """
    kind, value = kind_of(words)
    if kind in ("prompt", "text"):
        raise UserError(f"{field}: {words!r} is neither null, handwritten, nor an existing file")
    try:
        return read_negative(kind, value, config, encoder or partial(identify_text_encoder, config.model))
    except UserError as error:
        raise UserError(f"{field}: {words!r}: {error}") from None
