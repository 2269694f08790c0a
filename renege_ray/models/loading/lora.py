"""Adding a LoRA to a model: its low-rank changes become part of the weights, which stay frozen like all others."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from renege_ray.errors import UserError
from renege_ray.models.families.registry import distilled_name
from renege_ray.models.loading.user_errors import user_errors

_USUAL_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # of diffusers, of PEFT
_PEFT = "base_model.model."
_OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"}


def check_lora(lora: str) -> None:
    """Check what can be known of a LoRA without reading its tensors.

    Raises:
        UserError: a file or a folder that is not there or holds no LoRA, or one that distils guidance.
    """
    file = find_lora(lora)
    sign = distilled_name(lora)
    if file is not None and not sign:
        sign = distilled_name(str(file.parent)) if file.name in _USUAL_FILES else _sign_in_header(lora, file)
    if sign:
        raise UserError(
            f"model.lora: {lora!r} distils guidance into the weights ({sign}), so that a negative has no use; "
            "leave it out, or rename it if that is not true"
        )


def find_lora(lora: str) -> Path | None:
    """The file of a LoRA; None for a Hub id.

    Raises:
        UserError: no such file, or a folder from which none can be chosen.
    """
    path = Path(lora).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"model.lora: {lora!r} is not a .safetensors file, and no other kind is read")
        return path
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.safetensors"))
        usual = next((name for name in _USUAL_FILES if name in names), None)
        if usual is None and len(names) != 1:
            have = f"{len(names)} .safetensors files" if names else "no .safetensors file"
            raise UserError(f"model.lora: the folder {lora!r} has {have}; give the file itself")
        return path / (usual or names[0])
    if lora.count("/") > 1 or lora.startswith((".", "~", "/")) or path.suffix == ".safetensors":
        raise UserError(f"model.lora: {lora!r}: no such file or folder")
    return None


def _sign_in_header(lora: str, file: Path) -> str:
    """What the names that trainers write into a LoRA's header say of distillation; "" if nothing."""
    with user_errors(f"model.lora: {lora!r}", "download it again"), safe_open(file, "pt") as opened:
        header = opened.metadata() or {}
    names = (header.get(key, "") for key in ("ss_output_name", "modelspec.title"))
    return next((sign for name in names if (sign := distilled_name(name))), "")


def fuse_lora(pipeline: Any, lora: str) -> None:
    """Add a LoRA to the weights of a pipeline, at full strength, in place.

    Raises:
        UserError: it cannot be found or read, it is not for this kind of model, or a part of it could not be applied.
    """
    check_lora(lora)
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"model.lora: diffusers has no way to add a LoRA to a {kind}; leave it out")
    remedy = f"give a file that was trained for the {kind}"
    # diffusers shows hundreds of lines about a LoRA that does not fit, and then raises as well
    with user_errors(f"model.lora: {lora!r}", remedy, hub=find_lora(lora) is None), _quiet():
        file = find_lora(lora) or find_lora(_from_hub(lora))
        assert file is not None
        tensors = load_file(file)
        _check_kind(lora, tensors)
        peft = any(name.startswith(_PEFT) for name in tensors)
        tensors = from_peft(pipeline, file, tensors, lora) if peft else tensors
        try:
            if peft:
                pipeline.load_lora_weights(dict(tensors))
            else:  # by its name: diffusers reads the header, too
                options = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
                pipeline.load_lora_weights(str(file.parent), **options)
        except LookupError:  # where a whole network of the file is another one
            raise UserError(
                f"model.lora: {lora!r} holds layers that have no place in this {kind}, such as {min(tensors)}: {remedy}"
            ) from None
    if not pipeline.get_active_adapters():
        raise UserError(f"model.lora: {lora!r} holds no layer of the {kind}: give one that was trained for it")
    if left := not_applied(pipeline, tensors):
        raise UserError(
            f"model.lora: {lora!r}: {len(left)} of its {len(tensors)} tensors have no place in this {kind}, such as "
            f"{left[0]}; without them it is not what was trained: {remedy}"
        )
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def not_applied(pipeline: Any, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors of a LoRA's file that have not become an adapter's of the pipeline. diffusers only warns of
    layers that a model lacks, and renames those that it finds; so they are told by their values. Scales (alpha) are
    numbers of the layers beside them.
    """
    modules = [module for module in pipeline.components.values() if isinstance(module, nn.Module)]
    applied = {
        _digest(parameter) for module in modules for name, parameter in module.named_parameters() if ".lora_" in name
    }
    return [name for name, tensor in tensors.items() if tensor.dim() and _digest(tensor) not in applied]


def from_peft(pipeline: Any, file: Path, tensors: Mapping[str, Tensor], lora: str) -> dict[str, Tensor]:
    """The tensors of an adapter_model.safetensors as PEFT writes it (and TRL), in diffusers' names and at full scale.

    Raises:
        UserError: its adapter_config.json is missing or of another method, or no network has such layers.
    """
    path = file.parent / "adapter_config.json"
    if not path.is_file():
        raise UserError(
            f"model.lora: {lora!r} was written by PEFT, whose {path.name} with its scale has to lie beside it"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        what = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise UserError(f"model.lora: {lora!r} is a {what}, which cannot be added to the weights; give a plain LoRA")
    plain = {name.removeprefix(_PEFT): tensor for name, tensor in tensors.items()}
    layers = {name.partition(".lora_")[0] for name in plain}
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    owner = next((name for name, part in networks.items() if layers <= dict(part.named_modules()).keys()), None)
    if owner is None:
        raise UserError(
            f"model.lora: {lora!r} holds layers that no network of this {type(pipeline).__name__} has, such as "
            f"{min(layers)}; give one that was trained for it"
        )
    return {
        f"{owner}.{name}": tensor * _peft_scale(config, name) if ".lora_B." in name else tensor
        for name, tensor in plain.items()
    }


def _peft_scale(config: Mapping[str, Any], name: str) -> float:
    """alpha / r of a layer, as PEFT multiplies by it."""
    layer = name.partition(".lora_")[0]

    def setting(key: str, pattern: str) -> float:
        found = config.get(pattern) or {}
        special = next((found[end] for end in found if layer == end or layer.endswith(f".{end}")), None)
        return float(config[key] if special is None else special)

    rank = setting("r", "rank_pattern")
    return setting("lora_alpha", "alpha_pattern") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_kind(lora: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError for low-rank changes of other forms, of which diffusers would drop a part or all."""
    for sign, kind in _OTHER_KINDS.items():
        if found := next((name for name in tensors if sign in name), None):
            raise UserError(
                f"model.lora: {lora!r} is a {kind} (it has {found}), which diffusers cannot add to the weights; give a "
                "plain LoRA, or merge it into the model with the program that it was trained with"
            )


def _from_hub(lora: str) -> str:
    """The folder of a Hub id's LoRA, downloaded where it is not yet: the file of a usual name, or all there are."""
    folder = snapshot_download(lora, allow_patterns=[*_USUAL_FILES, "adapter_config.json"])
    if not any((Path(folder) / name).exists() for name in _USUAL_FILES):
        folder = snapshot_download(lora, allow_patterns=["*.safetensors"])
    return folder


def _digest(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    return tuple(values.shape), hashlib.sha256(values.numpy().tobytes()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
