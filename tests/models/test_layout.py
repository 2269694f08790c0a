import pytest
import torch

from renege_ray.method.embedding import ATTENTION_MASK, POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.layout import EmbeddingLayout

LAYOUTS = {
    (4, 6): EmbeddingLayout(4, 6),
    (5, 6): EmbeddingLayout(4, 6, pooled_width=3),
    (6, 6): EmbeddingLayout(4, 6, pooled_width=8),  # wider than a row
    (4, 7): EmbeddingLayout(4, 6, masked=True),
    (5, 7): EmbeddingLayout(4, 6, pooled_width=6, masked=True),
}


def tensors_of(layout: EmbeddingLayout, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(batch, *shape[1:], generator=generator) for name, shape in layout.shapes.items()}
    if layout.masked:
        tensors[ATTENTION_MASK] = (tensors[ATTENTION_MASK] > 0).long()
    return tensors


@pytest.mark.parametrize("packed_shape", LAYOUTS)
def test_there_and_back(packed_shape: tuple[int, int]) -> None:
    layout = LAYOUTS[packed_shape]
    tensors = tensors_of(layout, 3)
    packed = layout.pack(tensors)
    assert packed.shape == (3, *packed_shape) == (3, *layout.packed_shape) and packed.dtype == torch.float32
    back = layout.unpack(packed)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype
    half = layout.unpack(packed.half())
    assert half[PROMPT_EMBEDS].dtype == torch.float16
    assert torch.equal(layout.pack(half)[:, :4, :6], packed.half().float()[:, :4, :6])


@pytest.mark.parametrize("packed_shape", LAYOUTS)
def test_gradients_reach_what_is_learned_and_nothing_else(packed_shape: tuple[int, int]) -> None:
    layout = LAYOUTS[packed_shape]
    packed = layout.pack(tensors_of(layout, 2)).requires_grad_()
    learned = [tensor for name, tensor in layout.unpack(packed).items() if name != ATTENTION_MASK]
    (gradient,) = torch.autograd.grad(sum(tensor.sum() for tensor in learned), packed)
    assert gradient.sum() == sum(tensor.numel() for tensor in learned)
    assert gradient.unique().tolist() == ([1.0] if gradient.numel() == gradient.sum() else [0.0, 1.0])


def test_a_mask_survives_shrinking_and_its_absence_means_all() -> None:
    layout = EmbeddingLayout(4, 6, masked=True)
    packed = layout.pack({PROMPT_EMBEDS: torch.zeros(1, 4, 6), ATTENTION_MASK: torch.tensor([[1, 0, 1, 0]])})
    assert layout.unpack(1e-3 * packed)[ATTENTION_MASK].tolist() == [[1, 0, 1, 0]]
    assert layout.unpack(layout.pack({PROMPT_EMBEDS: torch.zeros(1, 4, 6)}))[ATTENTION_MASK].tolist() == [[1] * 4]


def test_in_words() -> None:
    assert EmbeddingLayout(77, 768).describe() == "77 tokens x 768"
    assert EmbeddingLayout(77, 2048, pooled_width=1280).describe() == "77 tokens x 2048 + pooled 1280"
    assert POOLED_EMBEDS in EmbeddingLayout(77, 2048, pooled_width=1280).shapes


def test_a_negative_of_a_length_of_its_own() -> None:
    """Texts have room for 6 tokens, a learned negative has 4, which come first and are all that is stored."""
    layout = EmbeddingLayout(6, 3, masked=True, learned_tokens=4)
    assert layout.shapes == {PROMPT_EMBEDS: (1, 4, 3), ATTENTION_MASK: (1, 4)} and layout.packed_shape == (6, 4)
    assert layout.describe() == "4 tokens x 3 + attention mask"
    n = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    packed = layout.pack({PROMPT_EMBEDS: n})
    assert packed.shape == (2, 6, 4) and packed[:, 4:].eq(0).all()
    assert layout.unpack(packed)[ATTENTION_MASK].tolist() == [[1, 1, 1, 1, 0, 0]] * 2
    stored = layout.unpack_negative(packed)
    assert torch.equal(stored[PROMPT_EMBEDS], n) and stored[ATTENTION_MASK].shape == (2, 4)
    assert layout.fitting(5).negative_tokens == 5 and layout.fitting(7) == layout
    assert EmbeddingLayout(6, 3).fitting(5) == EmbeddingLayout(6, 3), "a length that is not free stays"
