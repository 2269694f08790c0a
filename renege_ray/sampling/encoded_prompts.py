"""Prompts are encoded once: a bounded cache in front of the text encoder."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from renege_ray.models.base import TextToImage


class EncodedPrompts:
    """Encodes prompts with a model's text encoder and keeps the latest `capacity` different ones.

    Each prompt is encoded alone, never in a batch with others: the embedding is then a function of the
    prompt, bit for bit, whatever was asked for before. A resumed run depends on that.
    """

    def __init__(self, model: TextToImage, capacity: int = 20_000) -> None:
        if capacity < 1:
            raise ValueError(f"EncodedPrompts: capacity must be at least 1, got {capacity}")
        self._model = model
        self._capacity = capacity
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, L, D) float32 on the model's device."""
        return torch.cat([self._one(prompt) for prompt in prompts]).to(self._model.device).float()

    def _one(self, prompt: str) -> Tensor:
        """(1, L, D) in the type that the networks compute in, as which the denoiser takes it. On the CPU: 20,000 of
        them have 2.4 GB (SD1.5) or 20 GB (PixArt) in bfloat16.
        """
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        with torch.no_grad():
            embedding = self._model.encode_prompts([prompt]).to(self._model.dtype).cpu()
        self._cache[prompt] = embedding
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return embedding
