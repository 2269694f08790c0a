"""What is said of a model before its weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from renege_ray.config.cli import from_args
from renege_ray.config.run import ModelConfig, SamplingConfig
from renege_ray.errors import UserError
from renege_ray.models.load import check_model, identify_text_encoder, load_model
from renege_ray.models.loading.checks import check_files
from tests.tiny import build_tiny_pipeline, build_tiny_pixart, build_tiny_sdxl


def sampled(steps: int, scale: float = 7.5) -> SamplingConfig:
    return SamplingConfig(num_inference_steps=steps, guidance_scale=scale, gradient_steps=(0, 1))


def refused(folder: Path, *parts: str, steps: int = 30, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        check_model(ModelConfig(id=str(folder), **options), sampled(steps))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copies of a tiny model, each to be spoiled in another way."""
    build_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    return lambda name: Path(shutil.copytree(tmp_path / "tiny", tmp_path / name))


def test_what_can_be_loaded_is_not_refused(tmp_path: Path) -> None:
    for i, build in enumerate((build_tiny_pipeline, build_tiny_sdxl, build_tiny_pixart)):
        build().save_pretrained(tmp_path / f"{i}", max_shard_size="20KB")
        check_model(ModelConfig(id=str(tmp_path / f"{i}")), sampled(30))
        build().save_pretrained(tmp_path / f"half{i}", max_shard_size="20KB", variant="fp16")
        check_model(ModelConfig(id=str(tmp_path / f"half{i}"), variant="fp16"), sampled(30))
        check_model(ModelConfig(id=str(tmp_path / f"half{i}")), sampled(30))
    refused(tmp_path / "0", "model.variant", "'fp16' is no variant", variant="fp16")


def test_a_text_encoder_with_a_projection(copy: Callable[[str], Path]) -> None:
    folder = copy("projected")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))
    refused(folder, "one vector a prompt", "save it as a CLIPTextModel")


def test_a_variant_of_some_parts(copy: Callable[[str], Path]) -> None:
    """As on the Hub, where only the denoiser may have a smaller file."""
    folder = copy("mixed")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    check_model(ModelConfig(id=str(folder), variant="fp16"), sampled(30))
    check_model(ModelConfig(id=str(folder)), sampled(30))
    load_model(ModelConfig(id=str(folder)), "cpu")


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_weights_that_are_missing_or_cut_short(copy: Callable[[str], Path], part: str, name: str) -> None:
    folder = copy("spoiled")
    weights = folder / part / f"{name}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(folder, str(weights), "cannot be read", "download the model again")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    refused(folder, str(folder / part), "no .safetensors file")


def test_a_schedule_without_such_steps(copy: Callable[[str], Path]) -> None:
    folder = copy("scheduled")
    refused(folder, "num_inference_steps 1001", "1 to 1000", steps=1001)
    DDIMScheduler(num_train_timesteps=20).save_pretrained(folder / "scheduler")
    refused(folder, "num_inference_steps 30", "1 to 20")
    EulerDiscreteScheduler(rescale_betas_zero_snr=True, timestep_spacing="linspace").save_pretrained(
        folder / "scheduler"
    )
    refused(folder, "zero terminal SNR")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    refused(folder, "FlowMatchEulerDiscreteScheduler", "no DDIM form")
    DDIMScheduler(thresholding=True).save_pretrained(folder / "scheduler")
    refused(folder, "dynamic thresholding", "scheduler_config.json")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "NobodysScheduler"}))
    refused(folder, str(config), "no scheduler can be made")
    config.unlink()
    refused(folder, "scheduler_config.json")


@pytest.mark.parametrize("model", ["toy", "folder"])
def test_a_scale_without_a_gradient_is_refused_before_anything_is_loaded(
    copy: Callable[[str], Path], model: str
) -> None:
    config = ModelConfig(id="toy" if model == "toy" else str(copy("unguided")))
    check_model(config, sampled(4, 1.5))
    with pytest.raises(UserError, match=r"^sampling.guidance_scale: 1 is not above 1, so no gradient"):
        check_model(config, sampled(4, 1.0))
    with pytest.raises(UserError, match=r"sampling.guidance_options: .* has no 'cfg_truncation'"):
        check_model(config, sampled(4).model_copy(update={"guidance_options": {"cfg_truncation": 0.5}}))


def test_a_tokenizer_that_says_no_length(copy: Callable[[str], Path]) -> None:
    folder = copy("endless")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer pads to 1e\+30 tokens.*room for 12"):
        identify_text_encoder(ModelConfig(id=str(folder)))


def test_the_only_variant_is_read_without_being_named(tmp_path: Path) -> None:
    """A method of an evaluation (model=FOLDER:null) has no flag for it."""
    build_tiny_pipeline().save_pretrained(tmp_path, variant="fp16")
    check_files(ModelConfig(id=str(tmp_path)), sampled(4), gradients=True)
    model = load_model(ModelConfig(id=str(tmp_path)), "cpu")
    assert model.text_encoder_hash == load_model(ModelConfig(id=str(tmp_path), variant="fp16"), "cpu").text_encoder_hash
    for file in list(tmp_path.rglob("*.fp16.safetensors")):
        shutil.copy(file, file.with_name(file.name.replace("fp16", "bf16")))
    with pytest.raises(UserError, match=r"as variant bf16 or fp16 only; give --model\.variant"):
        check_files(ModelConfig(id=str(tmp_path)), sampled(4), gradients=True)


@pytest.mark.parametrize("value", [None, "missing"])
def test_a_model_that_does_not_say_its_size(tmp_path: Path, value: str | None) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "unet" / "config.json"
    config = json.loads(file.read_text()) | {"sample_size": None}
    if value == "missing":
        del config["sample_size"]
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^model\.size: .*sample_size.*--model\.size 512,512"):
        check_files(ModelConfig(id=str(tmp_path)), sampled(4), gradients=True)
    sized = from_args(["--model", "toy", "--model.size", "64,32"], "train_global").config.model.size
    assert sized == (64, 32) == from_args(["--model.size", "[64, 32]"], "train_global").config.model.size
    assert from_args(["--model.size", "null"], "train_global").config.model.size is None
    given = ModelConfig(id=str(tmp_path), size=(16, 8))
    check_files(given, sampled(4), gradients=True)
    assert load_model(given, "cpu").latent_shape[-2:] == (8, 4)


def test_weights_of_eight_bits_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("narrow")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file)
    refused(folder, str(file), "F8_E4M3", "bfloat16")
