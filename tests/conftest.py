"""A tiny random Stable Diffusion pipeline, made of diffusers' and transformers' own classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TINY_LENGTH, TINY_WIDTH = 12, 16
TINY_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _tokenizer() -> CLIPTokenizer:
    """Every byte is a token, alone or at the end of a word; there are no merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TINY_LENGTH)


def build_tiny_pipeline(
    *, unet_channels: tuple[int, ...] = (8, 16), width: int = TINY_WIDTH, seed: int = 0, **scheduler: Any
) -> StableDiffusionPipeline:
    """Latents (4, 8, 8), images (3, 16, 16), embeddings (12, width); `scheduler` overrides TINY_SCHEDULER."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = _tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TINY_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=unet_channels,
            down_block_types=("CrossAttnDownBlock2D",) * len(unet_channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(unet_channels),
            layers_per_block=1,
            cross_attention_dim=width,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**{**TINY_SCHEDULER, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tensors this small are faster on one thread, and results do not hang on the machine."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_pipeline() -> Callable[..., StableDiffusionPipeline]:
    """The builder of tiny pipelines."""
    return build_tiny_pipeline
