"""Rewards that need no weights."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Channel:
    """The mean of a colour channel minus the other two: differentiable, and it depends on the prompt's
    length.
    """

    def __init__(self, name: str = "channel", channel: int = 0) -> None:
        self.name = name
        self._channel = channel

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        signs = torch.full((3,), -0.5)
        signs[self._channel] = 1.0
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return (images * signs[:, None, None]).mean(dim=(1, 2, 3)) * lengths


class NaNWhere(Channel):
    """NaN in value and gradient for prompts that contain a word, or at all."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        bad = torch.tensor([self._word in prompt for prompt in prompts])
        return super().__call__(images, prompts) * torch.where(bad, torch.nan, 1.0)


class RaisesFor(Channel):
    """Raises for prompts that contain a word."""

    def __init__(self, word: str, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self._word, self._error = word, error

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if any(self._word in prompt for prompt in prompts):
            raise self._error(f"no {self._word},\nplease")
        return super().__call__(images, prompts)
