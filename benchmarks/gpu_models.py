"""Models of true size with random weights, made where they compute: what a kernel takes does not hang on the weights.

The numbers are those of the configuration files of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and HPSv2's
ViT-H/14. Only the tokenizers are stand-ins, which cut a text into bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from renege_ray.rewards.catalogue import REWARDS
from renege_ray.rewards.clip_towers import ClipReward
from renege_ray.rewards.vision import compute_in, letterbox

Sizes = dict[str, dict[str, Any]]

_CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408,
}  # fmt: skip
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TRUE: Sizes = {
    "sd15": {
        "unet": {
            "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 768, "attention_head_dim": 8,
        },
        "vae": {**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
        "text": _CLIP_L,
    },
    "sdxl": {
        "unet": {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "text": _CLIP_L,
        "text_2": {
            **_CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
            "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
        },
    },
    "reward": {
        "text": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "hidden_act": "gelu", "max_position_embeddings": 77, "vocab_size": 49408,
        },
        "vision": {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "hidden_act": "gelu", "image_size": 224, "patch_size": 14,
        },
        "projection_dim": 1024,
    },
}  # fmt: skip

_TINY_TEXT = {
    **_CLIP_L, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16,
}  # fmt: skip
_TINY_VAE = {
    **_VAE, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
_TINY_UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
TINY: Sizes = {
    "sd15": {
        "unet": {
            **_TINY_UNET, "cross_attention_dim": 16, "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        },
        "vae": _TINY_VAE,
        "text": _TINY_TEXT,
    },
    "sdxl": {
        "unet": {
            **_TINY_UNET, "cross_attention_dim": 40, "attention_head_dim": 2, "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 20,
        },
        "vae": {**_TINY_VAE, "force_upcast": True},
        "text": _TINY_TEXT,
        "text_2": {**_TINY_TEXT, "hidden_size": 24, "projection_dim": 20, "hidden_act": "gelu"},
    },
    "reward": {
        "text": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 16, "vocab_size": 49408,
        },
        "vision": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        "projection_dim": 8,
    },
}  # fmt: skip

_BEGIN, _END = 49406, 49407
_NOISE_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip


def stable_diffusion(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5."""
    parts = sizes["sd15"]
    tokenizer = _tokenizer(parts["text"])
    with made_in(device, dtype):
        networks = {
            "unet": UNet2DConditionModel(**parts["unet"]),
            "vae": AutoencoderKL(**parts["vae"]),
            "text_encoder": CLIPTextModel(_text_config(parts["text"], tokenizer)),
        }
    return StableDiffusionPipeline(
        **networks,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**_NOISE_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """SDXL."""
    parts = sizes["sdxl"]
    tokenizers = [_tokenizer(parts[name]) for name in ("text", "text_2")]
    with made_in(device, dtype):
        networks = {
            "unet": UNet2DConditionModel(**parts["unet"]),
            "vae": AutoencoderKL(**parts["vae"]),
            "text_encoder": CLIPTextModel(_text_config(parts["text"], tokenizers[0])),
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(parts["text_2"], tokenizers[1])),
        }
    return StableDiffusionXLPipeline(
        **networks,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=DDIMScheduler(**_NOISE_SCHEDULE),
        add_watermarker=False,
    )


def hpsv2(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> ClipReward:
    """HPSv2.1; attention and MLP of the image tower compute in `dtype`."""
    parts = sizes["reward"]
    context = int(parts["text"]["max_position_embeddings"])
    ends = {"bos_token_id": _BEGIN, "eos_token_id": _END}
    config = CLIPConfig(
        text_config=parts["text"] | ends, vision_config=parts["vision"], projection_dim=parts["projection_dim"]
    )
    with made_in(device, torch.float32):
        model = CLIPModel(config)
    compute_in(model.vision_model, dtype)

    def tokens(prompt: str) -> tuple[list[int], bool]:
        ids = [*prompt.encode()][: context - 2]
        return [_BEGIN, *ids, _END, *[0] * (context - 2 - len(ids))], False

    facts = REWARDS["hpsv2-v2.1"]
    reward = ClipReward(facts, Path("random"), model, tokens, letterbox)  # type: ignore[arg-type]
    reward.eval().requires_grad_(False).place(device)
    return reward


@contextmanager
def made_in(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Weights are made on a device, in a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _tokenizer(text: dict[str, Any]) -> CLIPTokenizer:
    """Every byte is a token, alone or at the end of a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=text["max_position_embeddings"])


def _text_config(text: dict[str, Any], tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(**text, **ends)
