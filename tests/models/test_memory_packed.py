"""As `test_memory`, for transformers that take 2 x 2 latents as a token; all at 128 latents a side."""

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from renege_ray.models.families.chroma import Chroma
from renege_ray.models.families.flux2_klein import Flux2Klein
from renege_ray.models.families.qwen_image import QwenImage
from renege_ray.models.networks.checkpointing import keep_inputs_alone
from renege_ray.models.networks.frozen_convolution import freeze_convolutions
from tests.models.live_memory import LiveMemory

SIDE = 64  # tokens
# Of a negative, and the width of its tokens and of those of an image.
LENGTHS = {QwenImage: (64, 3584, 64), Chroma: (512, 4096, 64), Flux2Klein: (512, 7680, 128)}


def denoiser_of(family: Any) -> Any:
    if family is Flux2Klein:  # base, of 4 billion weights
        return Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        )
    return QwenImageTransformer2DModel() if family is QwenImage else ChromaTransformer2DModel()


def denoise(family: Any, network: Any) -> tuple[Tensor, Tensor]:
    """An output for one image, and the negative that it is a function of."""
    (length, width, channels), dtype = LENGTHS[family], torch.bfloat16
    n = torch.zeros(1, length, width, dtype=dtype, requires_grad=True)
    axes = 4 if family is Flux2Klein else 3
    named: dict[str, Any] = {
        "img_ids": torch.zeros(SIDE**2, axes, dtype=dtype),
        "txt_ids": torch.zeros(length, axes, dtype=dtype),
    }
    if family is QwenImage:
        named = {"img_shapes": [[(1, SIDE, SIDE)]], "encoder_hidden_states_mask": torch.ones(1, length).bool()}
    if family is Chroma:
        named["attention_mask"] = torch.ones(1, length + SIDE**2, dtype=dtype)
    x, t = torch.zeros(1, SIDE**2, channels, dtype=dtype), torch.zeros(1, dtype=dtype)
    return network(x, encoder_hidden_states=n, timestep=t, return_dict=False, **named)[0], n


def decode(family: Any, network: Any) -> tuple[Tensor, Tensor]:
    """An image, and its latents."""
    channels = 16 if family is QwenImage else 32
    x = torch.zeros(1, channels, 2 * SIDE, 2 * SIDE, dtype=torch.bfloat16, requires_grad=True)
    if family is QwenImage:
        return network.decoder(network.post_quant_conv(x.unsqueeze(2))), x
    return network.decode(x, return_dict=False)[0], x


def save_memory(family: Any, network: Any) -> None:
    """Recompute, as the family does."""
    if family is Chroma:
        for block in (*network.transformer_blocks, *network.single_transformer_blocks):
            keep_inputs_alone(block, True)
    elif isinstance(network, AutoencoderKLQwenImage):
        for block in (network.decoder.mid_block, *network.decoder.up_blocks):
            keep_inputs_alone(block, True)
    else:
        network.enable_gradient_checkpointing()


@pytest.mark.parametrize(
    ("family", "part"),
    [
        (QwenImage, "denoise"),
        (Chroma, "denoise"),
        (Flux2Klein, "denoise"),
        (QwenImage, "decode"),
        (Flux2Klein, "decode"),
    ],
)
@pytest.mark.slow
def test_what_recomputation_takes_is_what_is_planned(family: Any, part: str) -> None:
    dtype = torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)
        try:
            decoder = AutoencoderKLQwenImage if family is QwenImage else AutoencoderKLFlux2
            network: Any = decoder() if part == "decode" else denoiser_of(family)
        finally:
            torch.set_default_dtype(dtype)
        network.requires_grad_(False).eval()
        freeze_convolutions(network)
        save_memory(family, network)
        with LiveMemory(network) as memory:
            output, leaf = (decode if part == "decode" else denoise)(family, network)
            torch.autograd.grad(output, leaf, torch.zeros_like(output))
    planned = getattr(family.MEMORY[1], part)
    assert planned == pytest.approx(memory.peak / 2**30, rel=0.1)
