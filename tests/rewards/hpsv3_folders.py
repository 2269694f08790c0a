"""HPSv3's files at reduced size: every tensor of HPSv3.safetensors, and Qwen2-VL's tokenizer and configuration."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

WIDTH, LAYERS, HEADS, KEY_HEADS, HIDDEN = 64, 2, 4, 2, 96
VISION_WIDTH, DEPTH = 32, 2
SPECIAL = (
    "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
    "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad",
)  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def hpsv3_folder(folder: Path, text: str) -> dict[str, Tensor]:
    """Write all files, the tokenizer with words of a text, and return the weights."""
    tokenizer = tokenizer_of(text)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config_of(tokenizer)))
    weights = random_weights(tokenizer.get_vocab_size() + 1)
    save_file(weights, folder / "HPSv3.safetensors")
    return weights


def tokenizer_of(text: str) -> Tokenizer:
    """As Qwen2-VL's, with its special tokens after all others."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text], BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in SPECIAL])
    return tokenizer


def config_of(tokenizer: Tokenizer) -> dict[str, object]:
    """In the form that the Hub has; like the original's, its number of tokens is not the fine-tuned model's."""
    ids = {f"{name}_token_id": tokenizer.token_to_id(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": tokenizer.token_to_id(f"<|{name}_pad|>") for name in ("image", "video")}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "vocab_size": tokenizer.get_vocab_size() + 99, "hidden_size": WIDTH, "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "use_sliding_window": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **ids,
        "vision_config": {
            "depth": DEPTH, "embed_dim": VISION_WIDTH, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3,
            "hidden_size": WIDTH, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }  # fmt: skip


def random_weights(vocab_size: int) -> dict[str, Tensor]:
    """By the names that transformers had when the model was saved, and in the types that they were saved in.

    What attention adds is large, so that image and prompt matter.
    """
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True, scale: float = 1.0) -> None:
        weights[f"{name}.weight"] = scale * torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        if bias:
            weights[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)

    def norm(name: str, width: int, bias: bool) -> None:
        weights[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        if bias:
            weights[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    projection = torch.randn(VISION_WIDTH, 3, 2, 14, 14, generator=generator)
    weights["visual.patch_embed.proj.weight"] = projection * (3 * 2 * 14 * 14) ** -0.5
    for i in range(DEPTH):
        block = f"visual.blocks.{i}"
        norm(f"{block}.norm1", VISION_WIDTH, bias=True)
        norm(f"{block}.norm2", VISION_WIDTH, bias=True)
        linear(f"{block}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        linear(f"{block}.mlp.fc1", VISION_WIDTH, 2 * VISION_WIDTH)
        linear(f"{block}.mlp.fc2", 2 * VISION_WIDTH, VISION_WIDTH)
    norm("visual.merger.ln_q", VISION_WIDTH, bias=True)
    linear("visual.merger.mlp.0", 4 * VISION_WIDTH, 4 * VISION_WIDTH)
    linear("visual.merger.mlp.2", 4 * VISION_WIDTH, WIDTH)
    weights["model.embed_tokens.weight"] = torch.randn(vocab_size, WIDTH, generator=generator)
    key_width = WIDTH * KEY_HEADS // HEADS
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        linear(f"{layer}.self_attn.q_proj", WIDTH, WIDTH)
        linear(f"{layer}.self_attn.k_proj", WIDTH, key_width)
        linear(f"{layer}.self_attn.v_proj", WIDTH, key_width)
        linear(f"{layer}.self_attn.o_proj", WIDTH, WIDTH, bias=False, scale=3.0)
        linear(f"{layer}.mlp.gate_proj", WIDTH, HIDDEN, bias=False)
        linear(f"{layer}.mlp.up_proj", WIDTH, HIDDEN, bias=False)
        linear(f"{layer}.mlp.down_proj", HIDDEN, WIDTH, bias=False)
        norm(f"{layer}.input_layernorm", WIDTH, bias=False)
        norm(f"{layer}.post_attention_layernorm", WIDTH, bias=False)
    norm("model.norm", WIDTH, bias=False)
    linear("lm_head", WIDTH, vocab_size, bias=False)
    weights = {name: weight.bfloat16() for name, weight in weights.items()}
    linear("rm_head.0", WIDTH, 1024, scale=2.0)
    linear("rm_head.3", 1024, 16, scale=2.0)
    linear("rm_head.5", 16, 2, scale=2.0)
    return weights
