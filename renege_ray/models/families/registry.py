"""The families of models, and which models are refused because no negative embedding can help them.

Everything is judged by a folder's small configuration files, before weights are downloaded or read.
"""

import re
from pathlib import Path

from renege_ray.errors import UserError
from renege_ray.models.families.chroma import Chroma
from renege_ray.models.families.flux2_klein import Flux2Klein
from renege_ray.models.families.lumina2 import Lumina2
from renege_ray.models.families.pixart_alpha import PixArtAlpha
from renege_ray.models.families.qwen_image import QwenImage
from renege_ray.models.families.sana import Sana
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.families.stable_diffusion_3 import StableDiffusion3
from renege_ray.models.families.stable_diffusion_controlnet import StableDiffusionControlNet
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.models.families.text_to_video import TextToVideo
from renege_ray.models.families.z_image import ZImage
from renege_ray.models.folder import INDEX, name_of, read_json
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.text_encoder import ENCODERS

FAMILIES: dict[str, type[FrozenPipeline]] = {
    family.PIPELINE: family
    for family in (
        StableDiffusion,
        StableDiffusionXL,
        StableDiffusion3,
        ZImage,
        QwenImage,
        Chroma,
        Flux2Klein,
        Sana,
        Lumina2,
        PixArtAlpha,
        StableDiffusionControlNet,
        TextToVideo,
    )
}
_DISTILLED = "its guidance is distilled into its weights, so that it makes no use of a negative"
_NO_NEGATIVE = {
    "FluxPipeline": _DISTILLED,
    "Flux2Pipeline": _DISTILLED,
    "LatentConsistencyModelPipeline": _DISTILLED,
    "SanaSprintPipeline": _DISTILLED,
    "Flux2KleinKVPipeline": _DISTILLED,
    "DDPMPipeline": "it knows no prompts, so it has no negative",
    "DDIMPipeline": "it knows no prompts, so it has no negative",
}
# What such a pipeline makes follows an image that is given to it, which prompts alone are not.
_WITH_AN_IMAGE = re.compile(r"(Edit|Inpaint|Img2Img|Image2Image|Kontext|Layered)")
_DISTILLED_SAMPLERS = ("LCMScheduler", "TCDScheduler")
# Adversarial distillation (SD-Turbo, SDXL-Turbo) leaves no trace in the weights' configuration; its sampler is this.
_TURBO_SAMPLERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
_DISTILLED_NAME = re.compile(
    r"(?:^|[-_. /])(turbo|lcm|lightning|schnell|hyper-?sd|dmd2?)(?:$|[-_. /\d])", re.IGNORECASE
)


def check_family(folder: Path, model: str) -> type[FrozenPipeline]:
    """The family of a folder in diffusers' format that has its configuration files, if nothing else.

    Args:
        folder: where the files are.
        model: what the user called it.

    Raises:
        UserError: there is no index, it is damaged, the kind of pipeline is not supported, or the model makes no use
            of a negative; the message says which.
    """
    index = read_json(folder / INDEX)
    kind = index.get("_class_name")
    if kind not in FAMILIES:
        given = "it edits, fills in or follows a given image, where here there are prompts alone"
        why = _NO_NEGATIVE.get(str(kind), given if _WITH_AN_IMAGE.search(str(kind)) else None)
        raise UserError(
            f"model {model!r} is a {kind}: " + (f"{why}; " if why else "") + f"supported are {', '.join(FAMILIES)}"
        )
    _check_denoiser(folder, FAMILIES[kind], model)
    sign = _sign_of_distillation(folder, kind) or distilled_name(model)
    if sign:
        raise UserError(
            f"model {model!r}: {_DISTILLED} ({sign}); give the model that it was distilled from, "
            "or change that if it is not true of this one"
        )
    return FAMILIES[kind]


def _check_denoiser(folder: Path, family: type[FrozenPipeline], model: str) -> None:
    """The denoiser is of the family's class, and neither it nor a text encoder is quantised."""
    for part in (family.DENOISER, *ENCODERS):
        file = folder / part / "config.json"
        config = read_json(file) if file.is_file() else {}
        if quantised := config.get("quantization_config"):
            how = quantised.get("quant_method", "in some way") if isinstance(quantised, dict) else "in some way"
            raise UserError(
                f"model {model!r}: its {part} is quantised ({how}, by quantization_config in {part}/config.json), "
                "which leaves neither exact gradients nor the text encoder's own embeddings; give the model in "
                "bfloat16, float16 or float32"
            )
        kind = config.get("_class_name")
        if part == family.DENOISER and family.DENOISER_CLASSES and kind and kind not in family.DENOISER_CLASSES:
            raise UserError(
                f"model {model!r}: its {part} is a {kind}, and a {family.PIPELINE} has a "
                f"{' or '.join(family.DENOISER_CLASSES)}; export or download the model again"
            )


def distilled_name(model: str) -> str:
    """What in the name of a model or a LoRA says that its guidance is distilled; empty if nothing does."""
    found = _DISTILLED_NAME.search(name_of(model))
    return f"{found[1]!r} in its name" if found else ""


def _sign_of_distillation(folder: Path, kind: str) -> str:
    denoiser = folder / FAMILIES[kind].DENOISER / "config.json"
    config = read_json(denoiser) if denoiser.is_file() else {}
    if read_json(folder / INDEX).get("is_distilled"):
        return f"is_distilled in {INDEX}"
    for file, content in ((folder / INDEX, read_json(folder / INDEX)), (denoiser, config)):
        origin = content.get("_name_or_path")
        if isinstance(origin, str) and (found := _DISTILLED_NAME.search(origin)):
            return f"{found[1]!r} in _name_or_path of {file.name}, what it was made of"
    if config.get("time_cond_proj_dim") is not None:
        return f"time_cond_proj_dim in {denoiser.parent.name}/{denoiser.name}: the guidance scale is an input"
    file = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file) if file.is_file() else {}
    if sign := FAMILIES[kind].distilled(config, scheduler):
        return sign
    sampler = scheduler.get("_class_name")
    turbo = (
        sampler in _TURBO_SAMPLERS
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
    )
    if turbo:
        return f"{sampler} with timestep_spacing trailing in scheduler/{file.name}, as turbo models have it"
    return f"{sampler} in scheduler/{file.name}" if sampler in _DISTILLED_SAMPLERS else ""
