"""Whose text encoders a pipeline of a user's has, whatever has been done to it since it was loaded.

Offloading leaves shapes without weights, bfloat16 and float8 leave too few bits of them, quantisation leaves others,
and a pipeline for prompts that were encoded beforehand has none at all. Then the files tell that it was loaded from.
"""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate.utils.modeling import get_state_dict_offloaded_model  # type: ignore[import-untyped]
from safetensors import safe_open
from torch import Tensor, nn

from renege_ray.errors import UserError
from renege_ray.models.folder import INDEX, read_json
from renege_ray.models.text_encoder import (
    ENCODERS,
    bare,
    describe_encoder,
    hash_text_encoders,
    hash_weights,
    join_hashes,
    text_encoders,
)

_WHOLE = (torch.float16, torch.float32, torch.float64)  # the hash is that of float16
_NOWHERE = Path("-")
_TIED = {"shared.weight": "encoder.embed_tokens.weight"}  # of T5: files have either


def check_encoders(pipeline: Any, known: str, name: str) -> None:
    """Check that a pipeline's text encoders are those of an embedding.

    Args:
        known: the hash of the embedding's encoders.
        name: what they are.

    Raises:
        UserError: they are others, which says in what they differ, or nothing tells whose they are.
    """
    encoders = text_encoders(pipeline)
    try:
        found = hash_text_encoders(_readable(pipeline)) if encoders else ""
    except ValueError:  # of accelerate: the weights are nowhere
        found = ""
    if found == known:
        return
    learned = f"negative embedding was learned for the text encoder {name or 'not named'} ({known})"
    vouch = 'if it is the same nevertheless, say text_encoder="same"'
    hidden = not encoders or any(_is_changed(encoder) for encoder in encoders)
    if hidden:
        stored = _hash_of_files(_folders(pipeline))
        if stored == known:
            return
        if not stored:
            types = {f"{weight.dtype}".removeprefix("torch.") for part in encoders for weight in part.parameters()}
            state = f"is in {', '.join(sorted(types))}" if encoders else "was left out"
            files = ", ".join(str(folder) for folder in _folders(pipeline) if folder != _NOWHERE) or "any folder"
            raise UserError(
                f"{learned}, and the pipeline's {state}, which hides whose it was; its files, which would tell, are "
                f"not in {files}: load the pipeline in float16 or float32, or from files that stay; {vouch}"
            )
        found = stored
    mine = " + ".join(describe_encoder(encoder) for encoder in encoders) or "another one"
    lora = sum(name.endswith("lora_A") for encoder in encoders for name, _ in encoder.named_modules())
    difference = f"with a LoRA on {lora} of its layers" if lora else f"({found})"
    raise UserError(f"{learned}, but the pipeline's is {mine} {difference}: use one that was learned for it; {vouch}")


def _readable(pipeline: Any) -> list[nn.Module]:
    """The encoders with the weights that accelerate keeps elsewhere while they wait for their turn, and without the
    tokens that a textual inversion has added.
    """
    found: list[nn.Module] = []
    for part in ENCODERS:
        for encoder in text_encoders(SimpleNamespace(**{part: getattr(pipeline, part, None)})):
            tokenizer: Any = getattr(pipeline, part.replace("text_encoder", "tokenizer"), None)
            config: Any = encoder.config
            is_clip = config.model_type == "clip_text_model"
            added = max(0, len(tokenizer) - tokenizer.vocab_size) if is_clip and tokenizer is not None else 0
            found.append(_Weights(encoder, added) if added or _is_meta(encoder) else encoder)
    return found


class _Weights(nn.Module):
    """An encoder's weights as they were loaded, under their names, with its configuration."""

    def __init__(self, encoder: Any, added_tokens: int) -> None:
        super().__init__()
        state: Mapping[str, Tensor] = dict(encoder.named_parameters())
        if _is_meta(encoder):
            kept = get_state_dict_offloaded_model(encoder)
            state = {name: kept[name] for name in state if name in kept}
        self.config = copy(encoder.config)
        self._state = dict(state)
        if added_tokens:
            self.config.vocab_size -= added_tokens
            for name, weight in self._state.items():
                if name.endswith("token_embedding.weight"):
                    self._state[name] = weight[: len(weight) - added_tokens]

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        """The weights."""
        return iter(self._state.items())


def _is_meta(encoder: nn.Module) -> bool:
    return any(weight.device.type == "meta" for weight in encoder.parameters())


def _is_changed(encoder: nn.Module) -> bool:
    """Whether its weights are not those of its files for a reason that leaves it the same encoder."""
    return _is_meta(encoder) or any(weight.dtype not in _WHOLE for weight in encoder.parameters())


def _folders(pipeline: Any) -> list[Path]:
    """Where the files of the encoders are that a pipeline was loaded with, or was loaded without."""
    if encoders := text_encoders(pipeline):
        return [Path(getattr(encoder.config, "_name_or_path", "") or _NOWHERE) for encoder in encoders]
    source = Path(str(getattr(pipeline, "name_or_path", "") or _NOWHERE))
    return [source / part for part in ENCODERS if (source / part).is_dir()]


def _hash_of_files(folders: list[Path]) -> str:
    """The hash of the encoders in folders, read a weight at a time; "" where they cannot be read."""
    try:
        hashes = [_hash_of_folder(folder) for folder in folders]
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    return join_hashes(hashes) if hashes else ""


def _class_of(folder: Path, config: Any) -> str:
    """What a pipeline loads the encoder as; its own configuration may name the same with a language model's head."""
    index = folder.parent / INDEX
    named = read_json(index).get(folder.name) if index.is_file() else None
    return str(named[1] if named else config.architectures[0])


def _hash_of_folder(folder: Path) -> str:
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        names = [name for name, _ in getattr(transformers, _class_of(folder, config))(config).named_parameters()]
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if len(file.suffixes) == 1]
    owner: dict[str, tuple[Path, str]] = {}
    for file in plain or files:
        with safe_open(file, "pt") as opened:
            owner |= {bare(name): (file, name) for name in opened.keys()}  # noqa: SIM118 (no mapping)

    def weight(name: str) -> Tensor:
        short = bare(name)
        file, stored = owner[short if short in owner else _TIED[short]]
        with safe_open(file, "pt") as opened:
            found: Tensor = opened.get_tensor(stored)
            return found

    return hash_weights(config, names, weight)
