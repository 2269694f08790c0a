"""Tiny models as in `tests.tiny`, of transformers that take 2 x 2 latents as a token."""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5EncoderModel,
)

from tests.tiny import _qwen_tokenizer, _seeded, _t5_config, _t5_tokenizer, _vae


def build_tiny_qwen_image(*, seed: int = 0, transformer: dict[str, Any] | None = None, **scheduler: Any) -> Any:
    """Qwen-Image: Qwen2.5-VL (24 wide), a video's VAE. `transformer` and `scheduler` override configurations."""

    def build() -> QwenImagePipeline:
        # So much of the template as one token that its 34 are dropped, as of the real one.
        tokenizer = _qwen_tokenizer(
            "Describe the image by detailing the color, shape, size, texture, quantity, text, "
            "spatial relationships of the object"
        )
        text = {
            "vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e6},
            "initializer_range": 0.5,
        }  # fmt: skip
        vision = {
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24,
            "fullatt_block_indexes": [0],
        }  # fmt: skip
        return QwenImagePipeline(
            text_encoder=Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=text, vision_config=vision, initializer_range=0.5)
            ),
            tokenizer=tokenizer,
            transformer=QwenImageTransformer2DModel(**{
                "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 12,
                "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4), **(transformer or {}),
            }),
            vae=AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False]),
            scheduler=FlowMatchEulerDiscreteScheduler(**{
                "use_dynamic_shifting": True, "max_image_seq_len": 8192, "max_shift": 0.9, "shift_terminal": 0.02,
                **scheduler,
            }),
        )  # fmt: skip

    return _seeded(build, seed)


def build_tiny_chroma(*, seed: int = 0, **scheduler: Any) -> ChromaPipeline:
    """Chroma: T5 (24 wide), a transformer of Flux's kind with one modulation for all. `scheduler` overrides its own."""

    def build() -> ChromaPipeline:
        tokenizer = _t5_tokenizer()
        return ChromaPipeline(
            text_encoder=T5EncoderModel(_t5_config(tokenizer, d_model=24)),
            tokenizer=tokenizer,
            transformer=ChromaTransformer2DModel(
                in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=12, num_attention_heads=2,
                joint_attention_dim=24, axes_dims_rope=(4, 4, 4), approximator_num_channels=16,
                approximator_hidden_dim=16, approximator_layers=1,
            ),
            vae=_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                     use_post_quant_conv=False),
            # Timesteps that bfloat16 has exactly: the transformer is told them in its own type.
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.0, **scheduler}),
        )  # fmt: skip

    return _seeded(build, seed)


def build_tiny_klein(*, seed: int = 0, is_distilled: bool = False, **scheduler: Any) -> Flux2KleinPipeline:
    """FLUX.2-klein: Qwen3 (8 wide, as deep as its pipeline looks), a VAE with a batch norm that has seen something."""

    def build() -> Flux2KleinPipeline:
        tokenizer = _qwen_tokenizer()
        encoder = Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=27, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4, max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
        )  # fmt: skip
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4, sample_size=16,
            latent_channels=8,
        )  # fmt: skip
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        transformer = Flux2Transformer2DModel(
            in_channels=32, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4), timestep_guidance_channels=16,
            guidance_embeds=False,
        )  # fmt: skip
        for weight in transformer.parameters():
            if weight.ndim == 2:  # so that a text has an effect
                weight.data *= 2
        return Flux2KleinPipeline(
            text_encoder=Qwen3ForCausalLM(encoder),
            tokenizer=tokenizer,
            transformer=transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.0, **scheduler}),
            is_distilled=is_distilled,
        )  # fmt: skip

    return _seeded(build, seed)
