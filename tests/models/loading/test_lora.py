"""A LoRA made here, with peft and diffusers, and what diffusers itself makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.load import identify_text_encoder, load_model
from renege_ray.models.loading.lora import check_lora
from tests.models.conformance import PROMPTS, Conformance, images_of
from tests.models.families.test_stable_diffusion import TestStableDiffusion1 as StableDiffusion1
from tests.models.families.test_stable_diffusion_xl import TestStableDiffusionXL as StableDiffusionXL
from tests.tiny import build_tiny_pipeline, build_tiny_sdxl


def write_lora(pipeline: Any, folder: Path, *, text: bool = False) -> Path:
    """Random changes of rank 2 to the denoiser's attention, and of the first text encoder's where `text` is."""
    options = {"r": 2, "lora_alpha": 2, "init_lora_weights": False}
    layers = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], **options))
        layers["unet_lora_layers"] = _state(pipeline.unet)
        if text:
            pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], **options))
            layers["text_encoder_lora_layers"] = _state(pipeline.text_encoder)
    type(pipeline).save_lora_weights(folder, **layers)
    return folder


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return convert_state_dict_to_diffusers(get_peft_model_state_dict(module))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    for name, build in {"sd": build_tiny_pipeline, "sdxl": build_tiny_sdxl}.items():
        build().save_pretrained(root / name)
        write_lora(build(), root / f"{name}-unet")
        write_lora(build(), root / f"{name}-text", text=True)
    return root


@pytest.mark.parametrize("part", ["unet", "text"])
@pytest.mark.parametrize(("name", "family"), [("sd", StableDiffusion1), ("sdxl", StableDiffusionXL)])
@pytest.mark.slow
def test_images_are_those_of_diffusers_with_the_lora(
    loras: Path, name: str, family: type[Conformance], part: str
) -> None:
    config = ModelConfig(id=str(loras / name), lora=str(loras / f"{name}-{part}"))
    model, without = load_model(config, "cpu"), load_model(ModelConfig(id=config.id), "cpu")
    assert model.name == f"{name} + {name}-{part}"
    pipeline = family.plain_pipeline(loras / name)
    pipeline.load_lora_weights(loras / f"{name}-{part}")
    expected = family().call(pipeline, model, PROMPTS)
    images = images_of(model, PROMPTS, model.null_embedding())
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (images - images_of(without, PROMPTS, without.null_embedding())).abs().max() > 0.01
    assert not any("lora" in key for key in model.pipeline.unet.state_dict())
    same_encoder = model.text_encoder_hash == without.text_encoder_hash
    assert same_encoder == (part == "unet"), "a LoRA of the text encoder makes it another one"
    assert identify_text_encoder(config).hash == model.text_encoder_hash


def test_a_file_is_as_good_as_its_folder(loras: Path) -> None:
    file = loras / "sd-unet" / "pytorch_lora_weights.safetensors"
    by_file, by_folder = (
        load_model(ModelConfig(id=str(loras / "sd"), lora=str(lora)), "cpu") for lora in (file, file.parent)
    )
    negative = by_file.null_embedding()
    assert torch.equal(images_of(by_file, PROMPTS, negative), images_of(by_folder, PROMPTS, negative))


def test_loras_that_do_not_fit(loras: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file({"hello.lora_A.weight": torch.ones(2, 2)}, tmp_path / "strange.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"noise" * 50)
    (tmp_path / "many").mkdir()
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / "many" / f"{name}.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled.bin").write_bytes(b"")
    cases = {
        str(loras / "sdxl-unet"): "size mismatch",
        str(tmp_path / "strange.safetensors"): "no layer",
        str(tmp_path / "damaged.safetensors"): "cannot be read",
        str(tmp_path / "many"): "2 .safetensors files",
        str(tmp_path / "empty"): "no .safetensors file",
        str(tmp_path / "pickled.bin"): "not a .safetensors file",
        "./none": "no such file",
        str(tmp_path / "none.safetensors"): "no such file",
        "latent-consistency/lcm-lora-sdv1-5": "distils guidance",
    }
    for lora, why in cases.items():
        capfd.readouterr()
        with pytest.raises(UserError, match=r"model\.lora: ") as caught:
            load_model(ModelConfig(id=str(loras / "sd"), lora=lora), "cpu")
        assert lora in str(caught.value) and why in str(caught.value) and "\n" not in str(caught.value)
        assert capfd.readouterr().err.count("\n") <= 1, "one line says it all"


def test_what_can_be_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    check_lora("somebody/some-lora")
    for lora in ("somebody/hyper-sd-lora", "./none", str(tmp_path)):
        with pytest.raises(UserError, match=r"model\.lora"):
            check_lora(lora)
