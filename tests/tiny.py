"""Tiny models with random weights, made of diffusers' and transformers' own classes: the architecture and the files of
the real ones, in configurations that compute in a moment.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from renege_ray.models.families.sana import INSTRUCTION

LUMINA2_SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts."
)
TINY_LENGTH, TINY_WIDTH = 12, 16
TINY_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def build_tiny_pipeline(
    *,
    unet_channels: tuple[int, ...] = (8, 16),
    width: int = TINY_WIDTH,
    seed: int = 0,
    unet: dict[str, Any] | None = None,
    text_encoder: dict[str, Any] | None = None,
    **scheduler: Any,
) -> StableDiffusionPipeline:
    """Stable Diffusion: latents (4, 8, 8), images (3, 16, 16), embeddings (12, width).

    `unet`, `text_encoder` and `scheduler` override configurations.
    """

    def build() -> StableDiffusionPipeline:
        tokenizer = _clip_tokenizer()
        return StableDiffusionPipeline(
            # The order in which weights are drawn is part of what some tests' figures hang on.
            text_encoder=CLIPTextModel(_clip_config(tokenizer, hidden_size=width, **(text_encoder or {}))),
            unet=_unet(
                block_out_channels=unet_channels,
                down_block_types=("CrossAttnDownBlock2D",) * len(unet_channels),
                up_block_types=("CrossAttnUpBlock2D",) * len(unet_channels),
                cross_attention_dim=width,
                **(unet or {}),
            ),
            vae=_vae(),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler(**{**TINY_SCHEDULER, **scheduler}),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return _seeded(build, seed)


def build_tiny_sd2(*, seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 2.1: v-prediction, OpenCLIP's activation, linear projections, heads of one size."""
    return build_tiny_pipeline(
        seed=seed,
        width=24,
        unet={"use_linear_projection": True, "attention_head_dim": (2, 4)},
        text_encoder={"hidden_act": "gelu", "projection_dim": 16, "num_hidden_layers": 3},
        prediction_type="v_prediction",
    )


def build_tiny_sdxl(*, seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL: two encoders (16 and 24 wide), pooled embedding 20, a decoder that overflows in float16 on paper."""

    def build() -> StableDiffusionXLPipeline:
        tokenizer, tokenizer_2 = _clip_tokenizer(), _clip_tokenizer(pad_token="!")
        second = _clip_config(tokenizer_2, hidden_size=24, hidden_act="gelu", projection_dim=20)
        return StableDiffusionXLPipeline(
            text_encoder=CLIPTextModel(_clip_config(tokenizer, hidden_size=16)),
            text_encoder_2=CLIPTextModelWithProjection(second),
            unet=_unet(
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                cross_attention_dim=16 + 24,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 20,
            ),
            vae=_vae(force_upcast=True),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )

    return _seeded(build, seed)


def build_tiny_sd3(*, seed: int = 0, t5: bool = True, **scheduler: Any) -> StableDiffusion3Pipeline:
    """SD3.5: two CLIP encoders that project (16 and 24 wide, pooled 20 + 28), T5 (48 wide) or none, latents of 16
    channels, a VAE that shifts. `scheduler` overrides its configuration.
    """

    def build() -> StableDiffusion3Pipeline:
        tokenizer, tokenizer_2, tokenizer_3 = _clip_tokenizer(), _clip_tokenizer(pad_token="!"), _t5_tokenizer()
        first = _clip_config(tokenizer, hidden_size=16, projection_dim=20)
        second = _clip_config(tokenizer_2, hidden_size=24, hidden_act="gelu", projection_dim=28)
        return StableDiffusion3Pipeline(
            text_encoder=CLIPTextModelWithProjection(first),
            text_encoder_2=CLIPTextModelWithProjection(second),
            text_encoder_3=T5EncoderModel(_t5_config(tokenizer_3, d_model=48)) if t5 else None,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            tokenizer_3=tokenizer_3 if t5 else None,
            transformer=SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=48,
                pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
            ),
            vae=_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
                     use_post_quant_conv=False),
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        )  # fmt: skip

    return _seeded(build, seed)


def build_tiny_z_image(*, seed: int = 0, **scheduler: Any) -> ZImagePipeline:
    """Z-Image: Qwen3 (24 wide) with a chat template. `scheduler` overrides its configuration."""

    def build() -> ZImagePipeline:
        tokenizer = _qwen_tokenizer()
        encoder = Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.5,
        )  # fmt: skip
        transformer = ZImageTransformer2DModel(
            in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24,
            axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
        )  # fmt: skip
        for weight in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(weight, std=0.5)
        return ZImagePipeline(
            text_encoder=Qwen3Model(encoder),
            tokenizer=tokenizer,
            transformer=transformer,
            vae=_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                     use_post_quant_conv=False),
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
        )  # fmt: skip

    return _seeded(build, seed)


def build_tiny_sana(*, seed: int = 0, scheduler: Any = None, **transformer: Any) -> SanaPipeline:
    """Sana: Gemma 2 (24 wide), linear attention, a decoder that makes 4 x 4 pixels of a latent, DPM-Solver."""

    def build() -> SanaPipeline:
        tokenizer = _gemma_tokenizer(INSTRUCTION)
        return SanaPipeline(
            text_encoder=Gemma2Model(_gemma_config(tokenizer)),
            tokenizer=tokenizer,
            transformer=SanaTransformer2DModel(
                **{
                    "in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 8,
                    "num_layers": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
                    "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8, **transformer,
                }
            ),
            vae=AutoencoderDC(
                latent_channels=8, attention_head_dim=4,
                encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 16, 16), decoder_block_out_channels=(8, 16, 16),
                encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
                encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
                upsample_block_type="interpolate", downsample_block_type="conv", scaling_factor=0.41407,
            ),
            scheduler=scheduler or DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2,
            ),
        )  # fmt: skip

    return _seeded(build, seed)


def build_tiny_lumina2(*, seed: int = 0, **scheduler: Any) -> Lumina2Pipeline:
    """Lumina-Image 2.0: Gemma 2 (24 wide), latents of 16 channels. `scheduler` overrides its configuration."""

    def build() -> Lumina2Pipeline:
        tokenizer = _gemma_tokenizer([LUMINA2_SYSTEM])
        return Lumina2Pipeline(
            text_encoder=Gemma2Model(_gemma_config(tokenizer)),
            tokenizer=tokenizer,
            transformer=Lumina2Transformer2DModel(
                sample_size=8, in_channels=16, hidden_size=32, num_layers=2, num_refiner_layers=1,
                num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 6, 6), axes_lens=(300, 64, 64),
                cap_feat_dim=24,
            ),
            vae=_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                     use_post_quant_conv=False, block_out_channels=(8, 8, 8, 8),
                     down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
        )  # fmt: skip

    return _seeded(build, seed)


def build_tiny_controlnet(*, seed: int = 0) -> StableDiffusionControlNetPipeline:
    """Stable Diffusion with a ControlNet, whose zero convolutions are as after training: not zero."""

    def build() -> StableDiffusionControlNetPipeline:
        pipeline = build_tiny_pipeline(seed=seed)
        controlnet = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 8))
        for weight in controlnet.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.3)
        return StableDiffusionControlNetPipeline(
            **pipeline.components, controlnet=controlnet, requires_safety_checker=False
        )

    return _seeded(build, seed)


def build_tiny_video(*, seed: int = 0) -> TextToVideoSDPipeline:
    """ZeroScope: a UNet that attends over frames, with SD 2.1's kind of text encoder."""

    def build() -> TextToVideoSDPipeline:
        tokenizer = _clip_tokenizer()
        unet = UNet3DConditionModel(
            sample_size=8,
            layers_per_block=1,
            attention_head_dim=4,
            norm_num_groups=4,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=24,
        )
        for weight in unet.parameters():
            if not weight.any():  # temporal convolutions begin as the identity
                torch.nn.init.normal_(weight, std=0.05)
        return TextToVideoSDPipeline(
            text_encoder=CLIPTextModel(_clip_config(tokenizer, hidden_size=24, hidden_act="gelu")),
            unet=unet,
            vae=_vae(),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler(**TINY_SCHEDULER),
        )

    return _seeded(build, seed)


def build_tiny_pixart(*, seed: int = 0, sample_size: int = 8) -> PixArtAlphaPipeline:
    """PixArt-alpha: T5 (16 wide), a transformer that puts out a variance too."""

    def build() -> PixArtAlphaPipeline:
        tokenizer = _t5_tokenizer()
        return PixArtAlphaPipeline(
            text_encoder=T5EncoderModel(_t5_config(tokenizer, d_model=16)),
            transformer=PixArtTransformer2DModel(
                sample_size=sample_size, num_layers=2, num_attention_heads=2, attention_head_dim=12,
                cross_attention_dim=24, caption_channels=16, in_channels=4, out_channels=8,
                norm_num_groups=4,
            ),
            vae=_vae(),
            tokenizer=tokenizer,
            scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        )  # fmt: skip

    return _seeded(build, seed)


def _seeded(build: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _clip_tokenizer(**options: Any) -> CLIPTokenizer:
    """Every byte is a token, alone or at the end of a word; there are no merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TINY_LENGTH, **options)


def _qwen_tokenizer(*tokens: str) -> Qwen2Tokenizer:
    """Every byte is a token, and each of `tokens`; a chat template as Qwen3 has it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], extra_special_tokens=["<|im_start|>", "<|im_end|>", *tokens]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


def _gemma_tokenizer(phrases: Sequence[str] = ()) -> GemmaTokenizer:
    """Every byte is a token, and each of the phrases; a text begins with <bos>."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], add_bos_token=True)
    tokenizer.add_tokens(list(phrases))
    return tokenizer


def _gemma_config(tokenizer: GemmaTokenizer) -> Gemma2Config:
    return Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=4096, initializer_range=0.5,
    )  # fmt: skip


def _t5_tokenizer() -> T5Tokenizer:
    """Every letter is a token."""
    words = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789.,-"]
    return T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0)


def _t5_config(tokenizer: T5Tokenizer, *, d_model: int) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer), d_model=d_model, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip


def _clip_config(tokenizer: CLIPTokenizer, *, hidden_size: int, **options: Any) -> CLIPTextConfig:
    sizes = {"intermediate_size": 2 * hidden_size, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        max_position_embeddings=TINY_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(sizes | options),
    )


def _unet(**options: Any) -> UNet2DConditionModel:
    sizes = {"sample_size": 8, "layers_per_block": 1, "attention_head_dim": 2, "norm_num_groups": 4}
    return UNet2DConditionModel(**(sizes | options))


def _vae(**options: Any) -> AutoencoderKL:
    sizes = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
        "latent_channels": 4,
    }
    return AutoencoderKL(**(sizes | options))


def write_lora(pipeline: Any, folder: Path, *, text: bool = False) -> Path:
    """Random changes of rank 2 to the denoiser's attention, and of the first text encoder's where `text` is."""
    options = {"r": 2, "lora_alpha": 2, "init_lora_weights": False}
    layers = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], **options))
        layers["unet_lora_layers"] = _state(pipeline.unet)
        if text:
            pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], **options))
            layers["text_encoder_lora_layers"] = _state(pipeline.text_encoder)
    type(pipeline).save_lora_weights(folder, **layers)
    return folder


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
