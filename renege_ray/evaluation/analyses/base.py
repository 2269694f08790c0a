"""What every analysis is given, and what it gives back."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from renege_ray.config.run import RunConfig
from renege_ray.models.base import TextToImage
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import Pair, make_pairs


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    config: RunConfig
    """Model, sampling and seed; the rest of it is not used."""
    model: TextToImage
    """The model."""
    encoded: EncodedPrompts
    """Its prompts' embeddings."""
    embedding: Tensor
    """n, (1, L, D) float32."""
    label: str
    """What to call it."""
    handwritten: str
    """The negative prompt to compare it with."""
    prompts: Sequence[str]
    """To make images of; none where the analysis needs none."""
    options: argparse.Namespace
    """The analysis's own flags."""
    say: Callable[[str], None]
    """Prints a line."""

    def pairs(self, count: int) -> tuple[Pair, ...]:
        """`count` pairs of a prompt and a seed; see `make_pairs`."""
        return make_pairs(self.prompts, count, self.config.seed)

    def negatives(self) -> dict[str, Tensor]:
        """Null, handwritten and the embedding itself by their labels, (1, L, D) each."""
        named = {"null": self.encoded.null(), "handwritten": self.encoded.negatives([self.handwritten])}
        return named | {self.label: self.embedding.to(self.model.device)}


@dataclass(frozen=True)
class Findings:
    """A table, what it comes to in words, figures by the names that summary.json has, and pictures by their names."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: str
    metrics: Mapping[str, float]
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
