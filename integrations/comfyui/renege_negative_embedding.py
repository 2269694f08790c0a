"""ComfyUI node: a learned negative embedding as CONDITIONING, to be connected to the `negative` input of a sampler.

Copy this file into ComfyUI/custom_nodes and embeddings (.safetensors) into ComfyUI/models/negative_embeddings.

The embedding is the *output* of a text encoder, and is handed on as it is: no CLIP runs, so prompt weights and CLIP
skip do not touch it. ComfyUI's own conditioning is in the same space as diffusers', where embeddings are learned:

- SD 1.x: the last layer after the final layer norm. With "CLIP Set Last Layer" (clip skip) at -2 or less, the *prompt*
  is from an earlier layer, which the embedding was not learned against: leave it at -1.
- SD 2.x: ComfyUI takes the last layer but one, after the final layer norm; diffusers' encoder lacks the last layer.
- SDXL: the last layers but one of both encoders side by side, without a layer norm, and the larger one's pooled output.
- PixArt: T5's last layer. ComfyUI has no attention mask there, so tokens that the embedding's mask hides are left out.

This file needs torch and safetensors alone, both of which ComfyUI has.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FOLDER = "negative_embeddings"
EMBEDS, POOLED, MASK = "negative_prompt_embeds", "negative_pooled_prompt_embeds", "negative_prompt_attention_mask"
SDXL_WIDTH = 2048
Conditioning = list[list[Any]]  # as ComfyUI has it: [[tensor (B, tokens, D), {name: value}], ...]

try:
    import folder_paths  # of ComfyUI
except ImportError:  # outside ComfyUI, files are named by their paths
    folder_paths = None
else:
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


class RenegNegativeEmbedding:
    """Loads a file and puts out [[tensor (1, L, D) float32, {"pooled_output": (1, P)} or {}]]."""

    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("negative",)
    FUNCTION = "load"
    DESCRIPTION = "A learned negative embedding (ReNeg) for the negative input of a sampler."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """One file; and, if connected, the positive conditioning that it is checked against and made as long as."""
        return {"required": {"file": (_files(),)}, "optional": {"positive": ("CONDITIONING",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str) -> bool | str:
        """True, or what is wrong, which ComfyUI shows before anything runs."""
        try:
            _read(_path(file))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, file: str, positive: Conditioning | None = None) -> str:
        """The content's hash: a file that is written anew is read anew."""
        return hashlib.sha256(_path(file).read_bytes()).hexdigest()

    def load(self, file: str, positive: Conditioning | None = None) -> tuple[Conditioning]:
        """The conditioning.

        Raises:
            ValueError: the file is no negative embedding, or one for another family of models than `positive`.
        """
        path = _path(file)
        embeds, pooled = _read(path)
        if positive is not None:
            embeds = _fitted(embeds, positive[0][0], path.name)
        return ([[embeds, {} if pooled is None else {"pooled_output": pooled}]],)


def _files() -> list[str]:
    if folder_paths is None:
        return []
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(".safetensors")]


def _path(file: str) -> Path:
    found = folder_paths.get_full_path(FOLDER, file) if folder_paths is not None else file
    if found is None or not Path(found).is_file():
        raise ValueError(f"negative embedding {file}: there is no such file in models/{FOLDER}")
    return Path(found)


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    """The embedding (1, L, D) and, for SDXL, the pooled one (1, P), both float32."""
    try:
        with safe_open(path, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"negative embedding {path.name}: is no whole safetensors file ({error}); `renege-ray embedding "
            "convert` makes one of a .bin or .pt"
        ) from error
    unknown = sorted(set(tensors) - {EMBEDS, POOLED, MASK})
    if {"emb_params", "clip_l", "clip_g"} & set(unknown):
        raise ValueError(
            f"negative embedding {path.name}: is a textual inversion, which is input of the text encoder; put it into "
            "models/embeddings and write embedding:NAME in the negative prompt"
        )
    if EMBEDS not in tensors or unknown:
        raise ValueError(
            f"negative embedding {path.name}: holds {sorted(tensors)[:4]}; want {EMBEDS} (for SDXL with {POOLED})"
        )
    embeds = _checked(tensors[EMBEDS], 3, EMBEDS, path)
    pooled = _checked(tensors[POOLED], 2, POOLED, path) if POOLED in tensors else None
    if embeds.shape[2] == SDXL_WIDTH and pooled is None:
        raise ValueError(f"negative embedding {path.name}: is for SDXL, but has no {POOLED}; export it again")
    if MASK in tensors:
        shown = tensors[MASK].flatten().bool()
        if len(shown) != embeds.shape[1] or not shown.any():
            raise ValueError(f"negative embedding {path.name}: {MASK} does not fit its {embeds.shape[1]} tokens")
        embeds = embeds[:, shown]
    return embeds, pooled


def _checked(tensor: Tensor, dimensions: int, name: str, path: Path) -> Tensor:
    """The tensor with its leading 1, in ComfyUI's type of conditioning."""
    if tensor.ndim == dimensions - 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != dimensions or tensor.shape[0] != 1 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise ValueError(f"negative embedding {path.name}: {name} is {tuple(tensor.shape)} of {tensor.dtype}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"negative embedding {path.name}: {name} holds NaN or infinite values")
    return tensor.float()


def _fitted(embeds: Tensor, prompt: Tensor, name: str) -> Tensor:
    """The embedding for a prompt (B, tokens, D): of the same width, and repeated to its length where it divides that.

    Repetition does not change what attention takes from it. ComfyUI repeats too, unless the lengths are too far apart,
    and then runs the two branches one after the other: it is faster this way, not different.
    """
    if prompt.shape[-1] != embeds.shape[-1]:
        raise ValueError(
            f"negative embedding {name}: is {embeds.shape[-1]} wide, but the prompt's conditioning {prompt.shape[-1]}: "
            "it was learned for another family of models"
        )
    times, rest = divmod(prompt.shape[1], embeds.shape[1])
    return embeds.repeat(1, times, 1) if times > 1 and rest == 0 else embeds


NODE_CLASS_MAPPINGS = {"RenegNegativeEmbedding": RenegNegativeEmbedding}
NODE_DISPLAY_NAME_MAPPINGS = {"RenegNegativeEmbedding": "Negative Embedding (ReNeg)"}
