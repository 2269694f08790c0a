import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renege_ray.config.run import ModelConfig, load_preset, preset_names
from renege_ray.errors import UserError
from renege_ray.models.families.registry import FAMILIES, check_family, distilled_name
from renege_ray.models.folder import name_of
from renege_ray.models.loading.hub import find_folder

SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A model folder of configuration files alone: nothing else may be needed to judge it."""

    def build(kind: str = "StableDiffusionXLPipeline", name: str = "model", **files: dict[str, Any]) -> Path:
        root = tmp_path / name
        parts = {"model_index": {"_class_name": kind}, "unet": {}, "transformer": {}, "scheduler": SCHEDULER} | files
        for part, content in parts.items():
            file = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(
                part, f"{part}/config.json"
            )
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(json.dumps(content))
        return root

    return build


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        find_folder(ModelConfig(id=str(folder)))
    assert "\n" not in str(caught.value)
    for part in (str(folder), *parts):
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_supported_kinds(folder: Callable[..., Path], kind: str) -> None:
    assert kind == check_family(folder(kind), "model").PIPELINE


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("FluxPipeline", "distilled"),
        ("Flux2Pipeline", "distilled"),
        ("LatentConsistencyModelPipeline", "distilled"),
        ("DDPMPipeline", "no prompts"),
        ("QwenImageEditPipeline", "a given image"),
        ("QwenImageEditPlusPipeline", "a given image"),
        ("QwenImageInpaintPipeline", "a given image"),
        ("StableDiffusionInpaintPipeline", "is a StableDiffusionInpaintPipeline"),
        ("None", "is a None"),
    ],
)
def test_other_kinds_are_refused_with_the_reason(folder: Callable[..., Path], kind: str, why: str) -> None:
    refused(folder(kind), kind, why, *FAMILIES)


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtAlphaPipeline"])
@pytest.mark.parametrize(
    ("files", "sign"),
    [
        ({"unet": {"time_cond_proj_dim": 256}, "transformer": {"time_cond_proj_dim": 256}}, "time_cond_proj_dim"),
        ({"scheduler": {"_class_name": "LCMScheduler"}}, "LCMScheduler"),
        ({"scheduler": SCHEDULER | {"timestep_spacing": "trailing"}}, "EulerDiscreteScheduler with timestep_spacing"),
        ({"name": "sdxl-turbo"}, "'turbo' in its name"),
    ],
    ids=["guidance as an input", "LCM", "turbo", "name"],
)
def test_distilled_models_are_refused(folder: Callable[..., Path], kind: str, files: Any, sign: str) -> None:
    refused(folder(kind, **files), "distilled", sign)


@pytest.mark.parametrize("part", ["transformer", "text_encoder_3"])
def test_quantised_models_are_refused(folder: Callable[..., Path], part: str) -> None:
    settings = {part: {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}}
    refused(folder("StableDiffusion3Pipeline", **settings), f"its {part} is quantised (bitsandbytes", "bfloat16")


def test_the_transformer_of_another_pipeline_is_refused(folder: Callable[..., Path]) -> None:
    other = folder("StableDiffusion3Pipeline", transformer={"_class_name": "FluxTransformer2DModel"})
    refused(other, "its transformer is a FluxTransformer2DModel", "has a SD3Transformer2DModel")


@pytest.mark.parametrize(
    "scheduler",
    [
        SCHEDULER | {"timestep_spacing": "leading"},
        SCHEDULER | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    ],
)
def test_others_with_some_of_the_signs_are_not(folder: Callable[..., Path], scheduler: Any) -> None:
    check_family(folder(unet={"time_cond_proj_dim": None}, scheduler=scheduler, name="turbine-2.1"), "turbine-2.1")


def test_names() -> None:
    for name in (
        "stabilityai/sd-turbo",
        "SimianLuo/LCM_Dreamshaper_v7",
        "a/SDXL-Lightning",
        "x/flux-schnell",
        "x/Hyper-SD",
    ):
        assert distilled_name(name), name
    for preset in set(preset_names()):
        assert not distilled_name(load_preset(preset).model.id)
    assert not distilled_name("someone/turbocharged-realism")


def test_a_name_is_the_cache_s_and_the_files_not_the_spelling_s(folder: Callable[..., Path], tmp_path: Path) -> None:
    """A snapshot's folder is called by its hash; links are called anything."""
    blobs = tmp_path / "hub" / "models--stabilityai--sd-turbo" / "blobs"
    snapshot = blobs.parent / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    folder().rename(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", snapshot)
    (blobs / "f00d").write_text("weights")
    (snapshot / "lora.safetensors").symlink_to("../../blobs/f00d")
    (tmp_path / "my-model").symlink_to(snapshot)
    assert name_of("stabilityai/sd-turbo") == name_of(str(snapshot)) == name_of(str(tmp_path / "my-model"))
    assert name_of(str(snapshot)) == "stabilityai/sd-turbo"
    assert name_of(str(snapshot / "lora.safetensors")) == "stabilityai/sd-turbo/lora"
    for given in (snapshot, tmp_path / "my-model"):
        with pytest.raises(UserError, match="'turbo' in its name"):
            check_family(given, str(given))
    check_family(tmp_path / "plain", str(tmp_path / "plain"))
    (tmp_path / "elsewhere").symlink_to(tmp_path / "plain")
    assert name_of(str(tmp_path / "elsewhere")) == "plain"
    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    index["_name_or_path"] = "stabilityai/sdxl-turbo"
    (tmp_path / "plain" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"'turbo' in _name_or_path of model_index.json"):
        check_family(tmp_path / "plain", "plain")


def test_damaged_configurations_are_named(folder: Callable[..., Path]) -> None:
    root = folder()
    (root / "scheduler" / "scheduler_config.json").write_text("[]")
    refused(root, "scheduler_config.json", "damaged")
