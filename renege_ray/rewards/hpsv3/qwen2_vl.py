"""Qwen2-VL (arXiv 2409.12191) as the backbone of a reward: what it is given of images, and its weights.

Shapes: images (B, 3, H, W) in [0, 1]; h, w: height and width in patches of 14 pixels; N = h w / 4, the places that an
image takes among the tokens; D: the language model's width.
"""

import json
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VLRMSNorm,
    Qwen2VLRotaryEmbedding,
    Qwen2VLVisionRotaryEmbedding,
)
from transformers.vision_utils import get_vision_position_ids

from renege_ray.errors import UserError
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.rewards.checkpoints import assemble
from renege_ray.rewards.vision import compute_blocks_in, normalise, resize

PATCH, MERGE, FRAMES = 14, 2, 2  # pixels, patches a side of what becomes one token, and copies of a still image in time
# The checkpoint's names, which are those of transformers before 4.52, and today's.
_PREFIXES = {"visual.": "visual.", "model.": "language_model."}


def patches(images: Tensor, pixels: int) -> tuple[Tensor, int, int]:
    """(B, 3, H, W) -> normalised patches (B h w, 3 * 2 * 14 * 14) with h and w, differentiable.

    Images are resized to about so many pixels, with sides that are multiples of 28 and nearly their own proportions.
    Patches that become one token follow one another.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    height, width = smart_resize(*images.shape[-2:], PATCH * MERGE, pixels, pixels)
    fitted = normalise(resize(images, height, width))
    h, w = height // PATCH, width // PATCH
    tokens = fitted.reshape(len(images), 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    tokens = tokens.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    return tokens.expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1).reshape(len(images) * h * w, -1), h, w


def image_features(model: Qwen2VLModel, images: Tensor, pixels: int) -> Tensor:
    """What stands for each image among the tokens, (B, N, D) float32, differentiable; see `patches`."""
    given, h, w = patches(images, pixels)
    grid, position_ids, cu_seqlens = _layout(len(images), h, w, images.device)
    features = model.visual(given, grid_thw=grid, position_ids=position_ids, cu_seqlens=cu_seqlens).pooler_output
    return features.float().unflatten(0, (len(images), -1))


@lru_cache
def _layout(count: int, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Grid (B, 3), the patches' rows and columns (B h w, 2), and where each image begins and the last ends (B + 1,).

    Made once, since copies to an accelerator wait for all that it computes; attention reads the last on the CPU.
    """
    with torch.inference_mode(False):
        grid = torch.tensor([[1, h, w]]).expand(count, 3)
        return grid, get_vision_position_ids(grid, MERGE).to(device), torch.arange(count + 1) * h * w


class PatchProjection(nn.Module):
    """Patches (P, 3 * 2 * 14 * 14) -> (P, width) float32: one matrix product.

    transformers has a convolution whose kernel is as large as a patch, which is the same, and slow on the way back.
    """

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(kernel.flatten(1).float(), requires_grad=False)

    def forward(self, given: Tensor) -> Tensor:
        """(P, 3 * 2 * 14 * 14) -> (P, width)."""
        return F.linear(given, self.weight)


def read_config(path: Path) -> Qwen2VLConfig:
    """A config.json of the Hub. Raises UserError where it is no Qwen2-VL's."""
    with user_errors(str(path), "download it again"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        kind = settings.get("model_type")
        if kind != "qwen2_vl":
            raise UserError(f"{path} is of a {kind!r} model: give the folder of Qwen/Qwen2-VL-7B-Instruct")
        config: Qwen2VLConfig = Qwen2VLConfig.from_dict(settings)
        return config


def assemble_backbone(
    config: Qwen2VLConfig, weights: Mapping[str, Tensor], checkpoint: Path, dtype: torch.dtype
) -> Qwen2VLModel:
    """Vision tower and language model without its output layer, frozen; see `compute_backbone_in`.

    Args:
        config: how many tokens there are is taken from the weights.
        weights: by the checkpoint's names.
        checkpoint: their file, for the error.
        dtype: as it is kept.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    renamed = {
        new + name.removeprefix(old): tensor
        for name, tensor in weights.items()
        for old, new in _PREFIXES.items()
        if name.startswith(old)
    }
    embeddings = renamed.get("language_model.embed_tokens.weight")
    if embeddings is not None and embeddings.ndim == 2:
        config.text_config.vocab_size = len(embeddings)
    model = assemble(partial(_empty, config, _Rotations(config)), renamed, checkpoint, dtype)
    compute_backbone_in(model, dtype)
    recompute_layers(model)
    return model


def compute_backbone_in(model: Qwen2VLModel, dtype: torch.dtype) -> None:
    """Attention, MLPs and embeddings are in a dtype; the residual streams, the norms and the projection of patches are
    float32 (see `renege_ray.rewards.vision`).
    """
    model.visual.patch_embed = PatchProjection(model.visual.patch_embed.proj.weight)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | Qwen2VLRMSNorm):
            module.float()
    text = model.language_model
    blocks = [block for layer in model.visual.blocks for block in (layer.attn, layer.mlp)]
    blocks += [block for layer in text.layers for block in (layer.self_attn, layer.mlp)]
    compute_blocks_in([*blocks, model.visual.merger.mlp], dtype)
    # As in a language model that is bfloat16 throughout: the vision tower rotates in float32.
    text.rotary_emb.register_forward_hook(lambda module, inputs, turns: tuple(turn.to(dtype) for turn in turns))


def recompute_layers(model: Qwen2VLModel) -> None:
    """Keep of each layer what it was given, and compute the rest of its activations a second time on the way back.

    An image takes 0.8 GiB instead of 9.4 then, so that the model fits beside others into 24 GB.
    """
    for layer in (*model.visual.blocks, *model.language_model.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


class _Rotations:
    """The rotary embeddings: their frequencies follow from the configuration, and no checkpoint has them."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        self.vision = Qwen2VLVisionRotaryEmbedding(config.vision_config)
        self.text = Qwen2VLRotaryEmbedding(config.text_config)


def _empty(config: Qwen2VLConfig, rotations: _Rotations) -> Qwen2VLModel:
    model = Qwen2VLModel(config)
    model.visual.rotary_pos_emb, model.language_model.rotary_emb = rotations.vision, rotations.text
    return model
