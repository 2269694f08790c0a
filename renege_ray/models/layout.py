"""What a negative embedding is made of, and how its tensors are packed into the one that is learned.

The method and the use cases know one float32 tensor a prompt, (B, L', D'), and one negative (1, L', D'). The
families know what is in it:

    n            (B, L, D)   hidden states of the text encoders           rows 0 .. L-1, columns 0 .. D-1
    pooled       (B, P)      one vector for the whole text (SDXL)         further rows of D numbers, zeros at the end
    mask         (B, L)      which tokens are attended to (PixArt)        one further column

Where texts are of any length (Z-Image), L is the most that a text may have, and a learned negative has
`learned_tokens`, which come first: the rows behind are zeros that are not attended to, and are not stored.

No gradient reaches the zeros and the mask: nothing is computed from the former, and the latter is only compared.
The tensors' names are those of diffusers' keyword arguments, as in `renege_ray.method.embedding`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from renege_ray.method.embedding import ATTENTION_MASK, POOLED_EMBEDS, PROMPT_EMBEDS


@dataclass(frozen=True)
class EmbeddingLayout:
    """The sizes of the tensors, and the way from them to the packed one and back."""

    tokens: int
    """L."""
    width: int
    """D."""
    pooled_width: int = 0
    """P, or 0 where there is no pooled embedding."""
    masked: bool = False
    """Whether there is an attention mask."""
    learned_tokens: int = 0
    """Of a learned negative, where that is free; 0 where it is L."""

    @property
    def negative_tokens(self) -> int:
        """How many tokens a learned negative has."""
        return self.learned_tokens or self.tokens

    def fitting(self, tokens: int) -> "EmbeddingLayout":
        """The same for a negative of so many tokens, where that is free and there is room."""
        return replace(self, learned_tokens=tokens) if self.learned_tokens and tokens <= self.tokens else self

    @property
    def packed_shape(self) -> tuple[int, int]:
        """(L', D')."""
        return self.tokens + self._pooled_rows, self.width + self.masked

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of one negative, by name."""
        shapes: dict[str, tuple[int, ...]] = {PROMPT_EMBEDS: (1, self.negative_tokens, self.width)}
        if self.pooled_width:
            shapes[POOLED_EMBEDS] = (1, self.pooled_width)
        if self.masked:
            shapes[ATTENTION_MASK] = (1, self.negative_tokens)
        return shapes

    def describe(self) -> str:
        """The sizes, for people."""
        parts = [f"{self.negative_tokens} tokens x {self.width}"]
        if self.pooled_width:
            parts.append(f"pooled {self.pooled_width}")
        if self.masked:
            parts.append("attention mask")
        return " + ".join(parts)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensors, each with B rows, as one of (B, L', D') float32.

        A mask that is not there attends to all tokens: files that hold n alone were learned that way.
        """
        packed = tensors[PROMPT_EMBEDS].float()
        if self.masked:
            mask = tensors.get(ATTENTION_MASK)
            column = torch.ones_like(packed[..., 0]) if mask is None else mask.to(packed)
            packed = torch.cat([packed, column[..., None]], dim=-1)
            packed = pad(packed, (0, 0, 0, self.tokens - packed.shape[1]))
        if self.pooled_width:
            pooled = tensors[POOLED_EMBEDS].float()
            numbers = pad(pooled, (0, self._pooled_rows * self.width - self.pooled_width))
            rows = pad(numbers.view(-1, self._pooled_rows, self.width), (0, int(self.masked)))
            packed = torch.cat([packed, rows.to(packed)], dim=1)
        return packed

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """The tensors by name, with B rows, in the dtype of `packed` (the mask: int64); differentiable.

        Whatever is above 0 in the mask's column is attended to: weight decay may shrink a 1, but not to 0.
        """
        states = packed[:, : self.tokens]
        tensors = {PROMPT_EMBEDS: states[..., : self.width]}
        if self.pooled_width:
            rows = packed[:, self.tokens :, : self.width]
            tensors[POOLED_EMBEDS] = rows.flatten(1)[:, : self.pooled_width]
        if self.masked:
            tensors[ATTENTION_MASK] = (states[..., -1] > 0).long()
        return tensors

    def unpack_negative(self, packed: Tensor) -> dict[str, Tensor]:
        """The same of a negative that was learned, without the rows behind it: as it is stored."""
        tensors = self.unpack(packed)
        by_token = tensors.keys() & {PROMPT_EMBEDS, ATTENTION_MASK}
        return tensors | {name: tensors[name][:, : self.negative_tokens] for name in by_token}

    @property
    def _pooled_rows(self) -> int:
        return -(-self.pooled_width // self.width)
