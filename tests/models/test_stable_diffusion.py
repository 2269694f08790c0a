import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from huggingface_hub import constants
from torch import Tensor

from renege_ray.config import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method import rollout
from renege_ray.models import load_model
from renege_ray.models.base import TextToImage, clamp_straight_through
from renege_ray.models.stable_diffusion import StableDiffusion, hash_text_encoder

Build = Callable[..., StableDiffusionPipeline]
PROMPTS = ("a red circle", "two", "")
STEPS, W = 6, 3.0


def noise(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(model: TextToImage, prompts: list[str], negative: Tensor, steps: int = STEPS) -> Tensor:
    schedule = model.schedule(steps)
    end = rollout(model.denoise, noise(len(prompts)), model.encode_prompts(prompts), negative, schedule, W)
    return model.decode(end.latents)


def theirs(pipeline: StableDiffusionPipeline, prompts: list[str], negative: Tensor, steps: int = STEPS) -> Tensor:
    images: Tensor = pipeline(
        prompts,
        negative_prompt_embeds=negative.expand(len(prompts), -1, -1),
        latents=noise(len(prompts)),
        num_inference_steps=steps,
        guidance_scale=W,
        output_type="pt",
    ).images
    return images


@pytest.fixture
def saved(tiny_pipeline: Build, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny_pipeline(prediction_type="v_prediction").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "scheduler",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "epsilon", "timestep_spacing": "linspace", "set_alpha_to_one": True},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"prediction_type": "sample", "timestep_spacing": "leading"},
    ],
    ids=lambda scheduler: "-".join(map(str, scheduler.values())),
)
def test_images_are_those_of_diffusers(tiny_pipeline: Build, scheduler: dict[str, Any], batch: int) -> None:
    prompts = list(PROMPTS[:batch])
    negative = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
    expected = theirs(tiny_pipeline(**scheduler), prompts, negative)
    images = ours(StableDiffusion(tiny_pipeline(**scheduler), "tiny"), prompts, negative)
    assert images.shape == (batch, 3, 16, 16) and images.dtype == torch.float32
    assert expected.std() > 0.05  # there is something to compare
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_a_model_with_another_scheduler_is_sampled_by_ddim(tiny_pipeline: Build) -> None:
    for kind in (PNDMScheduler, DDPMScheduler):
        pipeline = tiny_pipeline()
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        model = StableDiffusion(pipeline, "tiny")
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        null = model.encode_prompts([""])
        torch.testing.assert_close(ours(model, ["a"], null), theirs(pipeline, ["a"], null), atol=1e-4, rtol=0)


def test_a_flow_matching_scheduler_is_refused(tiny_pipeline: Build) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        StableDiffusion(pipeline, "tiny")


def test_saved_and_loaded(saved: Path, tiny_pipeline: Build) -> None:
    model = load_model(ModelConfig(id=str(saved)), device="cpu")
    assert (model.name, model.latent_shape, model.embedding_shape) == ("tiny", (4, 8, 8), (12, 16))
    assert model.text_encoder_name == "CLIPTextModel (2 layers of width 16)"
    negative = model.encode_prompts(["bad"])
    plain = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None, requires_safety_checker=False)
    expected = theirs(plain, list(PROMPTS), negative)
    torch.testing.assert_close(ours(model, list(PROMPTS), negative), expected, atol=1e-4, rtol=0)


def test_everything_is_frozen_and_channels_last(tiny_pipeline: Build) -> None:
    pipeline = tiny_pipeline()
    pipeline.unet.train()
    StableDiffusion(pipeline, "tiny")
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    for conv in (pipeline.unet.conv_in, pipeline.vae.decoder.conv_in):
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_encoding_is_the_pipelines(tiny_pipeline: Build) -> None:
    pipeline = tiny_pipeline()
    model = StableDiffusion(pipeline, "tiny")
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, False)
    encoded = model.encode_prompts(PROMPTS)
    assert torch.equal(encoded, expected) and not encoded.requires_grad


def test_prompts_that_are_too_long_are_counted_and_cut(tiny_pipeline: Build, capfd: pytest.CaptureFixture[str]) -> None:
    model = StableDiffusion(tiny_pipeline(), "tiny")
    capfd.readouterr()
    fits, long = "a" * 10, "a" * 11  # 12 tokens with the two that begin and end a text
    assert model.count_truncated([fits, long, "", long * 9]) == 2
    assert model.count_truncated([fits]) == model.count_truncated([]) == 0
    assert model.encode_prompts([long]).shape == (1, 12, 16)
    assert capfd.readouterr() == ("", "")


def test_bfloat16_inside_float32_outside(tiny_pipeline: Build) -> None:
    pipeline = tiny_pipeline(prediction_type="v_prediction")
    model = StableDiffusion(pipeline, "tiny", dtype=torch.bfloat16)
    assert {p.dtype for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in m.parameters()} == {
        torch.bfloat16
    }
    x, c = noise(1), model.encode_prompts(["a"])
    assert c.dtype == torch.float32
    assert model.denoise(x, torch.tensor(500), c).dtype == torch.float32
    assert model.decode(x).dtype == torch.float32
    exact = StableDiffusion(tiny_pipeline(prediction_type="v_prediction"), "tiny")
    difference = ours(model, ["a"], c) - ours(exact, ["a"], exact.encode_prompts(["a"]))
    assert difference.abs().mean() < 0.03
    assert model.text_encoder_hash == exact.text_encoder_hash


def test_the_clamp_is_exact_in_value_and_open_in_gradient() -> None:
    images = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.7], requires_grad=True)
    clamped = clamp_straight_through(images)
    assert torch.equal(clamped, images.clamp(0, 1))
    weights = torch.arange(5.0)
    (gradient,) = torch.autograd.grad((clamped * weights).sum(), images)
    assert torch.equal(gradient, weights)


def test_decoding_is_the_pipelines_and_differentiable(tiny_pipeline: Build) -> None:
    pipeline = tiny_pipeline()
    model = StableDiffusion(pipeline, "tiny")
    latents = noise(2).requires_grad_()
    images = model.decode(latents)
    with torch.no_grad():
        raw = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(images, pipeline.image_processor.postprocess(raw, output_type="pt"))
    assert ((images == 0) | (images == 1)).any()  # so the clamp was at work
    (gradient,) = torch.autograd.grad(images.sum(), latents)
    assert (gradient != 0).all()


def test_the_hash_tells_encoders_apart_and_nothing_else(saved: Path, tiny_pipeline: Build, tmp_path: Path) -> None:
    reference = StableDiffusion.from_pretrained(str(saved)).text_encoder_hash
    assert len(reference) == 16 and int(reference, 16) >= 0
    assert StableDiffusion.from_pretrained(str(saved), dtype=torch.bfloat16).text_encoder_hash == reference
    tiny_pipeline(prediction_type="epsilon").to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert StableDiffusion.from_pretrained(str(tmp_path / "half"), variant="fp16").text_encoder_hash == reference
    other = tiny_pipeline().text_encoder
    assert hash_text_encoder(other) == reference
    with torch.no_grad():
        other.final_layer_norm.bias[3] += 0.01
    assert hash_text_encoder(other) != reference
    assert hash_text_encoder(tiny_pipeline(seed=1).text_encoder) != reference
    activation = tiny_pipeline().text_encoder
    activation.config.hidden_act = "gelu"
    assert hash_text_encoder(activation) != reference


def refused(model: str, *parts: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        StableDiffusion.from_pretrained(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_bad_folders(saved: Path, tmp_path: Path) -> None:
    refused(str(tmp_path / "missing"), str(tmp_path / "missing"), "no such folder", "model_index.json")
    refused("./missing", "./missing", "no such folder")
    refused("a/b/c", "no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(str(empty), str(empty), "model_index.json")
    refused(str(saved / "model_index.json"), "is a file", "folder")
    refused(str(saved), "fp16", variant="fp16")

    def broken(name: str) -> Path:
        return Path(shutil.copytree(saved, tmp_path / name))

    xl = broken("xl")
    (xl / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    refused(str(xl), "StableDiffusionXLPipeline")
    index = broken("index")
    (index / "model_index.json").write_text("{")
    refused(str(index), "model_index.json", "damaged")
    for part, name in {
        "unet": "diffusion_pytorch_model.safetensors",
        "vae": "diffusion_pytorch_model.safetensors",
        "text_encoder": "model.safetensors",
    }.items():
        without = broken(f"without_{part}")
        (without / part / name).unlink()
        refused(str(without), str(without), name)
        damaged = broken(f"damaged_{part}")
        (damaged / part / name).write_bytes(b"noise" * 50)
        refused(str(damaged), str(damaged))
    pickled = broken("pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    refused(str(pickled), "safetensors")


def test_the_hub_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refused("nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE", "model_index.json", "local folder")


class _Hub(http.server.BaseHTTPRequestHandler):
    """A Hub that knows no model, hangs up on some, and has a revision `main` only."""

    def do_GET(self) -> None:
        if "hangs/up" in self.path:
            self.close_connection = True
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "revised/model" in self.path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_the_hub_without_the_model_or_out_of_reach(hub: str, tmp_path: Path) -> None:
    """In a process of its own: the client reads its address when it is imported."""
    code = """
from renege_ray.errors import UserError
from renege_ray.models.hub import find_folder
for name, revision in (("nobody/nothing", None), ("revised/model", "v9"), ("hangs/up", None)):
    try:
        find_folder(name, revision=revision, variant=None)
    except UserError as error:
        print(error)
"""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    nothing, revised, hangs = done.stdout.splitlines()
    assert "nobody/nothing" in nothing and "check the spelling" in nothing and "local folder" in nothing
    assert "revised/model" in revised and "'v9'" in revised
    assert "hangs/up" in hangs and "cannot be reached" in hangs and "local folder" in hangs
