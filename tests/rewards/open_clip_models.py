"""Small CLIPs of random weights by open_clip's own model class: the reference for all rewards made of CLIP."""

from pathlib import Path

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

VOCABULARY = Path(__import__("open_clip").__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
HPSV2_TOWERS = {"vision_width": 1280, "head_width": 80, "text_width": 1024, "embed_dim": 1024}


def open_clip_model(
    *,
    quick_gelu: bool = False,
    layers: int = 2,
    vision_width: int = 128,
    head_width: int = 64,
    text_width: int = 64,
    embed_dim: int = 512,
) -> CLIP:
    """Images (B, 3, 224, 224) in patches of 14; 77 tokens of CLIP's vocabulary. Norms and biases are random too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(
            embed_dim=embed_dim,
            quick_gelu=quick_gelu,
            vision_cfg={
                "image_size": 224, "patch_size": 14, "layers": layers, "width": vision_width, "head_width": head_width
            },
            text_cfg={
                "context_length": 77, "vocab_size": 49408, "layers": layers, "width": text_width,
                "heads": text_width // 64,
            },
        )  # fmt: skip
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def save_checkpoint(model: CLIP, path: Path) -> Path:
    """As hpsv2's checkpoints are."""
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def text_features(model: CLIP, prompts: list[str]) -> Tensor:
    """(B, D), through open_clip's tokenizer."""
    return model.encode_text(SimpleTokenizer()(prompts), normalize=True)
