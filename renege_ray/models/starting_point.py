"""Where learning starts: at a negative all of whose tokens are attended to, and no two of which are alike.

Tokens that are exactly alike get the same gradient at every step and stay alike for ever, and so do, nearly, an
encoder's outputs for padding. A little noise, always the same, tells them apart.
"""

import torch
from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.layout import EmbeddingLayout

TIE_BREAK = 1e-2  # of the root mean square of n: changes the images little, and tells copies apart


def filled(n: Tensor, mask: Tensor) -> Tensor:
    """Copies of the tokens that are attended to, in turn and told apart, in the place of those that are not.

    In cross-attention, attention over copies of a token is attention to the token. (Where image and text attend to each
    other as one sequence, a text of more tokens has more weight.)

    Args:
        n: (1, L, D).
        mask: which tokens are attended to, (1, L) bool; at least one.

    Returns:
        (1, L, D), all of which is to be attended to.
    """
    attended = n[mask]
    copies = attended[torch.arange(n.shape[1], device=n.device) % len(attended)]
    return torch.where(mask[..., None], n, _with_noise(copies, attended))


def filled_up(embedding: Tensor, layout: EmbeddingLayout) -> Tensor:
    """A text, filled up to the learned length by copies of its tokens (`filled`), where that length is free.

    Args:
        embedding: (1, L', D'), packed; the tokens that are attended to come first.
        layout: says the length.

    Returns:
        (1, L', D'), packed, with all tokens of the length attended to.

    Raises:
        UserError: the text has more tokens than are learned.
    """
    tensors, length = layout.unpack(embedding), layout.negative_tokens
    n, mask = tensors[PROMPT_EMBEDS], tensors[ATTENTION_MASK].bool()
    if (found := int(mask.sum())) > length:
        raise UserError(
            f"model.negative_tokens: {length}, but learning is to start from a negative of {found} tokens; give "
            f"{-(-found // 32) * 32}, or a shorter text"
        )
    return layout.pack({PROMPT_EMBEDS: filled(n[:, :length], mask[:, :length])})


def told_apart(n: Tensor) -> Tensor:
    """n, (1, L, D), with noise on each token that is like one before it."""
    scale = TIE_BREAK * n.square().mean().sqrt() * n.shape[-1] ** 0.5  # of the noise of one token
    alike = (torch.cdist(n, n) < 0.5 * scale).tril(-1).any(dim=-1)
    return torch.where(alike[..., None], _with_noise(n[0], n), n)


def _with_noise(tokens: Tensor, measure: Tensor) -> Tensor:
    """(L, D) plus noise of `TIE_BREAK` times the root mean square of `measure`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tokens.shape, generator=generator, dtype=torch.float32).to(tokens)
    return tokens + TIE_BREAK * measure.square().mean().sqrt() * noise
