"""Which preset goes with a model, by its small configuration files; and which rewards do not."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from renege_ray.config.paths import METHOD_MODEL, place
from renege_ray.config.run import RunConfig, load_preset, preset_names
from renege_ray.errors import UserError
from renege_ray.output.console import say

DEFAULT_PRESET = "toy"
_EMBEDDED = ("toy", "toy2")
_TOY_REWARDS = ("toy", "toy_held_out", "judge")
_INDEX = "model_index.json"
# Of pipelines; those of Stable Diffusion's tell by the width of the text encoder which one they are of.
_PRESETS = {
    "StableDiffusionXLPipeline": "sdxl",
    "PixArtAlphaPipeline": "pixart",
    "StableDiffusion3Pipeline": "sd35-medium",
    "ZImagePipeline": "z-image",
    "QwenImagePipeline": "qwen-image",
    "ChromaPipeline": "chroma",
    "Flux2KleinPipeline": "flux2-klein",
    "SanaPipeline": "sana",
    "Lumina2Pipeline": "lumina2",
}
_BY_WIDTH = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "TextToVideoSDPipeline")
_HUB_SECONDS = 5.0
_WIDE = 1024  # OpenCLIP's, of 2.x
# The embedded models' own, which a folder written by `renege-ray toy export` has, too.
_TOY_UNET = {"block_out_channels": [64, 128], "cross_attention_dim": 128, "sample_size": 8}


def preset_for(model: str, *, download: bool) -> tuple[str, str]:
    """The preset of a model's family, and how that is known ("" where it is a guess, since the model cannot be found).

    Args:
        model: as a user names it.
        download: whether the two files that tell may be fetched from the Hub.
    """
    if model in _EMBEDDED:
        return DEFAULT_PRESET, "it is an embedded model"
    own = next((name for name in preset_names() if load_preset(name).model.id == model), None)
    if own is not None:
        return own, "it is the preset's own"
    kind, denoiser = _facts(place(model), download)
    if _is_toy(denoiser):
        return DEFAULT_PRESET, "it has the architecture of the embedded models"
    if kind in _PRESETS:
        return _PRESETS[kind], f"it is a {kind}"
    if kind in _BY_WIDTH and denoiser:
        width = denoiser.get("cross_attention_dim")
        return "sd21" if width == _WIDE else "sd15", f"it is a {kind} with embeddings of width {width}"
    return "sd15", ""


def choose_preset(model: str | None) -> str:
    """The preset of a command that names none; said, where a model decides it, since it decides nearly all else."""
    if not model or model in _EMBEDDED:
        return DEFAULT_PRESET
    preset, why = preset_for(model, download=True)
    if not why and os.path.isabs(place(model)):  # no such folder, which is refused soon
        return DEFAULT_PRESET
    said = why or "its family cannot be read from the Hub"
    say(f"preset {preset} for {model}: {said} (--preset takes another)")
    return preset


def check_rewards(config: RunConfig, job: str) -> None:
    """Check that none but an embedded model is judged by the embedded models' rewards, which know their pictures only.

    Raises:
        UserError: another model would be.
    """
    rewards = config.rewards
    fields = {"rewards.train": rewards.train, "rewards.held_out": rewards.held_out, "rewards.judges": rewards.judges}
    if job == "evaluate" and config.evaluation.rewards:
        fields = {"evaluation.rewards": config.evaluation.rewards}
    found = [(field, name) for field, names in fields.items() for name in names if name in _TOY_REWARDS]
    if not found:
        return
    other = next((model for model in _models(config, job) if _is_another(model)), None)
    if other is not None:
        field, name = found[0]
        raise UserError(
            f"{field}: {name!r} knows the pictures of the embedded models only, and {other} is none of them; give "
            f"rewards for photographs, such as hpsv2 and pickscore, or --preset {preset_for(other, download=False)[0]}"
        )


def _models(config: RunConfig, job: str) -> Iterable[str]:
    yield config.model.id
    if job == "evaluate":
        for spec in config.evaluation.methods:
            if named := METHOD_MODEL.fullmatch(spec):
                yield named[1]


def _is_another(model: str) -> bool:
    """Whether it is there (or on the Hub), and none of the embedded ones. What is missing is for another check."""
    if model in _EMBEDDED or (model.startswith("/") and not (Path(model) / _INDEX).is_file()):
        return False
    return not _is_toy(_facts(model, download=False)[1])


def _is_toy(denoiser: dict[str, Any]) -> bool:
    return all(denoiser.get(name) == value for name, value in _TOY_UNET.items())


def _facts(model: str, download: bool) -> tuple[str, dict[str, Any]]:
    """The class of a model's pipeline, and the configuration of its UNet; what cannot be found is empty."""
    index = _read(model, _INDEX, download)
    kind = str(index.get("_class_name", ""))
    return kind, _read(model, "unet/config.json", download) if kind in _BY_WIDTH else {}


def _read(model: str, name: str, download: bool) -> dict[str, Any]:
    try:
        text = _on_the_hub(model, name, download) if not os.path.isabs(model) else (Path(model) / name).read_bytes()
        content = json.loads(text)
    except Exception:  # whatever is wrong with the model or with the Hub is told when it is wanted
        return {}
    return content if isinstance(content, dict) else {}


def _on_the_hub(model: str, name: str, download: bool) -> bytes:
    """A file of the Hub's cache, or of the Hub itself, which is asked once only: without it there still is a guess."""
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not re-exported

    if isinstance(file := try_to_load_from_cache(model, name), str):
        return Path(file).read_bytes()
    if not download:
        return b"{}"
    answer = get_session().get(
        hf_hub_url(model, name), headers=build_hf_headers(), timeout=_HUB_SECONDS, follow_redirects=True
    )
    answer.raise_for_status()
    return bytes(answer.content)
