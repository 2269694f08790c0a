"""Finding a diffusers model in a folder or on the Hugging Face Hub, and saying plainly why there is none."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoModel, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models import toy
from renege_ray.models.families.registry import check_family
from renege_ray.models.folder import INDEX, name_of, read_json, sole_variant
from renege_ray.models.loading.controlnet import add_controlnet, check_control
from renege_ray.models.loading.lora import fuse_lora
from renege_ray.models.loading.user_errors import user_errors
from renege_ray.models.networks.half_precision import kept_dtype
from renege_ray.models.text_encoder import ENCODERS

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# No images but the model's own: the checker would paint some black, and rewards would judge the paint.
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
# Enough to say whether a model is supported, before gigabytes are downloaded.
SMALL_FILES = [INDEX, "*/config.json", "*/scheduler_config.json"]


def load_pipeline(config: ModelConfig, *, text_only: bool = False, dtype: torch.dtype | None = None) -> tuple[Any, str]:
    """The pipeline of a configuration on the CPU, with its LoRA fused; and what to call it.

    Args:
        config: the `model` section.
        text_only: leave out the denoiser and the VAE, which are most of a model.
        dtype: that the model will compute in: what is read in the type that it is kept in takes no more memory than
            that on the way. With None, or a LoRA, which is added in float32, all is float32.

    Raises:
        UserError: no such folder or model, a file is missing or damaged, or the Hub cannot be reached.
    """
    folder = find_folder(config)
    if not text_only:
        check_control(config, folder)
    parts = toy.OWN_PARTS.get(config.id, {})
    types = {} if dtype is None or config.lora is not None else types_of(folder, config.id, dtype)
    pipeline = read_pipeline(folder, config.id, variant=config.variant, text_only=text_only, parts=parts, types=types)
    # The name goes into stored metadata, where the path of one machine would mean nothing.
    name = config.id if config.id in toy.EMBEDDED_MODELS else name_of(config.id)
    if config.controlnet is not None and not text_only:
        pipeline = add_controlnet(pipeline, config.controlnet, types.get("controlnet", torch.float32))
        name += f" + {name_of(config.controlnet)}"
    if config.lora is not None:
        fuse_lora(pipeline, config.lora)
        name += f" + {name_of(config.lora)}"
    return pipeline, name


def find_folder(config: ModelConfig) -> Path:
    """The folder of a model: the one that is named, or where the Hub's files lie once they are downloaded.

    Raises:
        UserError: it cannot be found, or makes no use of a negative; the message names the file or the id and says
            what to do.
    """
    model, revision = config.id, config.revision
    if model in toy.EMBEDDED_MODELS:
        return toy.PIPELINE_FOLDER
    path = Path(model).expanduser()
    if path.is_dir():
        check_family(path, model)
        return path
    if path.exists():
        raise UserError(f"model {model!r} is a file: give the folder in diffusers' format (one with {INDEX})")
    if not HUB_ID.fullmatch(model):
        raise UserError(f"model {model!r}: no such folder; give one in diffusers' format (with {INDEX}), or a Hub id")
    remedy = f"give a local folder in diffusers' format (one with {INDEX})"
    with user_errors(f"model {model!r}", remedy, hub=True, revision=revision):
        check_family(Path(snapshot_download(model, revision=revision, allow_patterns=SMALL_FILES)), model)
        return Path(
            DiffusionPipeline.download(
                model, revision=revision, variant=config.variant, use_safetensors=True, **WITHOUT_CHECKER
            )
        )


def read_pipeline(
    folder: Path,
    model: str,
    *,
    variant: str | None = None,
    text_only: bool = False,
    parts: Mapping[str, Path] = MappingProxyType({}),
    types: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> Any:
    """The pipeline of a folder from safetensors files only.

    Args:
        folder: in diffusers' format.
        model: what the user called it.
        variant: of the weights' files; where none is given, the only one that there is.
        text_only: leave out the denoiser and the VAE.
        parts: networks, beside the text encoders, that lie elsewhere, {name: folder}.
        types: what networks are read in, {name: type}; float32 where it names none.

    Raises:
        UserError: a file is missing or damaged.
    """
    family = check_family(folder, model)
    variant = variant or sole_variant(folder)
    options = dict(WITHOUT_CHECKER) if family.SAFETY_CHECKER else {}
    options |= {name: None for name in family.OPTIONAL if not (folder / name).is_dir()}
    strictly = {"use_safetensors": True, "local_files_only": True}
    remedy = "only safetensors files are read; export or download it again"
    with user_errors(f"model {model!r} in {folder}", remedy), _no_progress_bars():
        if text_only:
            options |= {family.DENOISER: None, "vae": None}
        else:
            for name, part in parts.items():
                dtype = types.get(name, torch.float32)
                options[name] = AutoModel.from_pretrained(str(part), torch_dtype=dtype, **strictly)
        of_all = {"default": torch.float32, **types}
        return DiffusionPipeline.from_pretrained(folder, variant=variant, dtype=of_all, **strictly, **options)


def types_of(folder: Path, model: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What the networks of a folder are read in: those that compute on images in what they will be kept in for a model
    of `dtype`, text encoders in that of their files, of which their hash is taken before they are cast.
    """
    types = {check_family(folder, model).DENOISER: dtype, "controlnet": dtype}
    types["vae"] = kept_dtype(dtype, read_json(folder / "vae" / "config.json"))
    return types | {name: _type_of_files(folder / name) for name in ENCODERS if (folder / name).is_dir()}


def _type_of_files(part: Path) -> torch.dtype:
    """The floating type of a network's weights; float32 where there are several, or another one."""
    found: set[str] = set()
    for file in part.glob("*.safetensors"):
        with user_errors(f"model file {file}", "export or download the model again"), safe_open(file, "pt") as opened:
            found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    floating = {name for name in found if name.startswith(("F", "BF"))}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get("".join(floating), torch.float32)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Reading from a disk takes a moment, and every worker does it; bars of downloads are left alone."""
    libraries = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
