"""Denoisers and decoders of the real models' configurations, without their weights."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from renege_ray.models.families.lumina2 import WholeMask

BLOCKS_4 = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
}
UNETS: dict[str, dict[str, Any]] = {
    "SD1.5": BLOCKS_4 | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD2.1": BLOCKS_4
    | {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "SDXL": {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
SIDES = {"SD1.5": 64, "SD2.1": 96, "SDXL": 128, "PixArt": 64, "SD3.5": 128, "Z-Image": 128, "Sana": 32, "Lumina2": 128}
CHANNELS = dict.fromkeys(SIDES, 4) | {"SD3.5": 16, "Z-Image": 16, "Sana": 32, "Lumina2": 16}


def denoiser_of(name: str) -> nn.Module:
    """The UNet or transformer of a model."""
    if name == "PixArt":
        network: nn.Module = PixArtTransformer2DModel(
            sample_size=64, num_layers=28, num_attention_heads=16, attention_head_dim=72, cross_attention_dim=1152,
            in_channels=4, out_channels=8, patch_size=2, caption_channels=4096, use_additional_conditions=False,
        )  # fmt: skip
        return network
    if name == "SD3.5":  # medium
        return SD3Transformer2DModel(  # type: ignore[no-any-return]
            sample_size=128, num_layers=24, num_attention_heads=24, attention_head_dim=64, joint_attention_dim=4096,
            caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=384, qk_norm="rms_norm",
            dual_attention_layers=tuple(range(13)), in_channels=16, out_channels=16, patch_size=2,
        )  # fmt: skip
    if name == "Lumina2":
        return Lumina2Transformer2DModel(cap_feat_dim=2304)  # type: ignore[no-any-return]
    if name == "Sana":  # 1.6B
        return SanaTransformer2DModel()  # type: ignore[no-any-return]
    if name == "Z-Image":
        return ZImageTransformer2DModel()  # type: ignore[no-any-return]
    return UNet2DConditionModel(**UNETS[name])  # type: ignore[no-any-return]


def decoder_of(name: str) -> nn.Module:
    """The autoencoder of a model: that of all, with its latent channels; or Sana's, which compresses deeply."""
    if name == "Sana":
        blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
        return AutoencoderDC(  # type: ignore[no-any-return]
            encoder_block_types=blocks, decoder_block_types=blocks, upsample_block_type="interpolate",
            downsample_block_type="conv", encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        )  # fmt: skip
    network: nn.Module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=CHANNELS[name],
        sample_size=512,
    )
    return network


def denoise(name: str, network: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor]:
    """An output for a batch of latents, and the negative that it is a function of."""
    count, tokens = len(latents), {"PixArt": 120, "SD3.5": 333}.get(name, 77)
    width = UNETS[name]["cross_attention_dim"] if name in UNETS else 4096
    if name == "Z-Image":
        n = torch.zeros(count, 64, 2560, dtype=latents.dtype, requires_grad=True)
        x, t = list(latents.unsqueeze(2).unbind()), torch.zeros(count, dtype=latents.dtype)
        return torch.stack(network(x, t, list(n.unbind()), return_dict=False)[0]).squeeze(2), n
    if name in ("Sana", "Lumina2"):
        tokens, width = 300 if name == "Sana" else 256, 2304
    n = torch.zeros(count, tokens, width, dtype=latents.dtype, requires_grad=True)
    t = torch.zeros(count, dtype=torch.int64)
    named: dict[str, Any] = {}
    if name == "PixArt":
        named = {
            "encoder_attention_mask": torch.ones(count, tokens, dtype=latents.dtype),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    if name == "Sana":
        named = {"encoder_attention_mask": torch.ones(count, tokens, dtype=latents.dtype)}
    if name == "Lumina2":  # asks for the lengths, which fake tensors do not know
        named = {"encoder_attention_mask": WholeMask(torch.ones(count, tokens))}
    if name == "SD3.5":
        named = {"pooled_projections": torch.zeros(count, 2048, dtype=latents.dtype)}
    if name == "SDXL":
        pooled, ids = torch.zeros(count, 1280, dtype=latents.dtype), torch.zeros(count, 6, dtype=latents.dtype)
        named = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    output = network(latents, timestep=t, encoder_hidden_states=n, return_dict=False, **named)[0]
    return output[:, : latents.shape[1]], n
