"""The networks behind the embedded model's two rewards: does a picture show what its prompt asks for, unspoiled?

Both map images (B, 3, 32, 32) in [0, 1] and token ids (B, L) to (B,); they share nothing but the tokenizer, so that
what exploits one need not fool the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (B, L), padded and truncated as StableDiffusionPipeline does."""
    encoded = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


class WordBag(nn.Module):
    """Token ids (B, L) -> (B, width): the mean of the words' vectors, then an MLP. Order carries no meaning here."""

    def __init__(self, vocabulary_size: int, width: int, end_token: int) -> None:
        super().__init__()
        self.end_token = end_token
        self.words = nn.Embedding(vocabulary_size, 64)
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, width)."""
        # Padding repeats the end token, and the begin token (id 0) says nothing.
        is_word = ((tokens != self.end_token) & (tokens != 0)).unsqueeze(-1)
        mean = (self.words(tokens) * is_word).sum(1) / is_word.sum(1).clamp(min=1)
        return self.mlp(mean)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


class ProductScorer(nn.Module):
    """Two towers: the picture's features and the prompt's meet once, as a product, before a small MLP."""

    def __init__(self, vocabulary_size: int, end_token: int, width: int = 256) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            _Residual(32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            _Residual(64),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            _Residual(96),
            nn.GroupNorm(8, 96),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(96 * 16, width),
        )
        self.text_tower = WordBag(vocabulary_size, width, end_token)
        self.head = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) in [0, 1] and token ids (B, L) -> (B,)."""
        picture, prompt = self.image_tower(images * 2 - 1), self.text_tower(tokens)
        return self.head(torch.cat([picture, prompt, picture * prompt], dim=1)).squeeze(1)


class _Modulated(nn.Module):
    """A convolution whose channels the prompt scales and shifts (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels_in: int, channels_out: int, text_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 5, stride=2, padding=2)
        self.norm = nn.GroupNorm(4, channels_out)
        self.film = nn.Linear(text_width, 2 * channels_out)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        scale, shift = self.film(prompt)[:, :, None, None].chunk(2, dim=1)
        return F.gelu(self.norm(self.conv(x)) * (1 + scale) + shift)


class ModulatedScorer(nn.Module):
    """One tower: the prompt modulates every layer that looks at the picture; the last map is read as a whole."""

    def __init__(self, vocabulary_size: int, end_token: int, text_width: int = 128) -> None:
        super().__init__()
        self.text_tower = WordBag(vocabulary_size, text_width, end_token)
        self.layers = nn.ModuleList(
            [_Modulated(3, 40, text_width), _Modulated(40, 64, text_width), _Modulated(64, 96, text_width)]
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, 192), nn.GELU(), nn.Linear(192, 1))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) in [0, 1] and token ids (B, L) -> (B,)."""
        prompt = self.text_tower(tokens)
        x = images * 2 - 1
        for layer in self.layers:
            x = layer(x, prompt)
        return self.head(x).squeeze(1)


REWARD_NETWORKS: dict[str, type[ProductScorer] | type[ModulatedScorer]] = {
    "toy": ProductScorer,
    "toy_held_out": ModulatedScorer,
}
