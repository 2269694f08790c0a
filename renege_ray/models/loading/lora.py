"""Adding a LoRA to a model: its low-rank changes become part of the weights, which stay frozen like all others."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging

from renege_ray.errors import UserError
from renege_ray.models.families.registry import distilled_name
from renege_ray.models.loading.user_errors import user_errors

DEFAULT_FILE = "pytorch_lora_weights.safetensors"  # what diffusers calls it


def check_lora(lora: str) -> None:
    """Check what can be known of a LoRA without reading it.

    Raises:
        UserError: a file or a folder that is not there or holds no LoRA, or one that distils guidance.
    """
    find_lora(lora)
    sign = distilled_name(lora)
    if sign:
        raise UserError(
            f"model.lora: {lora!r} distils guidance into the weights ({sign}), so that a negative has no use; "
            "leave it out, or rename it if that is not true"
        )


def find_lora(lora: str) -> tuple[str, str | None]:
    """The folder and the file of a LoRA; a Hub id is returned as it is, without a file.

    Raises:
        UserError: no such file, or a folder from which none can be chosen.
    """
    path = Path(lora).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(f"model.lora: {lora!r} is not a .safetensors file, and no other kind is read")
        return str(path.parent), path.name
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.safetensors"))
        if DEFAULT_FILE in names:
            return str(path), DEFAULT_FILE
        if len(names) != 1:
            have = f"{len(names)} .safetensors files" if names else "no .safetensors file"
            raise UserError(f"model.lora: the folder {lora!r} has {have}; give the file itself")
        return str(path), names[0]
    if lora.count("/") > 1 or lora.startswith((".", "~", "/")) or path.suffix == ".safetensors":
        raise UserError(f"model.lora: {lora!r}: no such file or folder")
    return lora, None


def fuse_lora(pipeline: Any, lora: str) -> None:
    """Add a LoRA to the weights of a pipeline, at full strength, in place.

    Raises:
        UserError: it cannot be found or read, or it is not for this kind of model.
    """
    check_lora(lora)
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"model.lora: diffusers has no way to add a LoRA to a {kind}; leave it out")
    folder, file = find_lora(lora)
    options = {"weight_name": file, "local_files_only": True} if file else {}
    remedy = f"give a file that was trained for the {kind}"
    # diffusers shows hundreds of lines about a LoRA that does not fit, and then raises as well
    with user_errors(f"model.lora: {lora!r}", remedy, hub=file is None), _quiet():
        pipeline.load_lora_weights(folder, use_safetensors=True, **options)
    if not pipeline.get_active_adapters():
        raise UserError(f"model.lora: {lora!r} holds no layer of the {kind}: give one that was trained for it")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


@contextmanager
def _quiet() -> Iterator[None]:
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
