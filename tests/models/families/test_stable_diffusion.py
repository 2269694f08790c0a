from collections.abc import Callable
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

from renege_ray import NegativeEmbedding
from renege_ray.errors import UserError
from renege_ray.method import EmbeddingMetadata
from renege_ray.models.base import clamp_straight_through
from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.text_encoder import hash_text_encoder, identify
from tests.models.conformance import PROMPTS, Conformance, images_of, noise
from tests.tiny import build_tiny_pipeline, build_tiny_sd2

Build = Callable[..., StableDiffusionPipeline]


class TestStableDiffusion1(Conformance):
    """Predicts the noise."""

    test_compiled_it_is_two_graphs_of_each_network = None  # type: ignore[assignment]  # they are those of the other

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_pipeline(seed=seed)

    def test_facts(self, model: FrozenPipeline) -> None:
        assert (model.latent_shape, model.embedding_shape) == ((4, 8, 8), (12, 16))
        assert model.text_encoder_name == "CLIPTextModel (2 layers of width 16)"

    def test_encoding_is_the_pipelines(self, model: FrozenPipeline, pipeline: Any) -> None:
        with torch.no_grad():
            expected, _ = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, False)
        encoded = model.encode_prompts(PROMPTS)
        assert torch.equal(encoded, expected) and not encoded.requires_grad


class TestStableDiffusion2(Conformance):
    """Predicts v; its text encoder is OpenCLIP's."""

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_sd2(seed=seed)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"prediction_type": "epsilon", "timestep_spacing": "linspace", "set_alpha_to_one": True},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"prediction_type": "sample", "timestep_spacing": "leading"},
    ],
    ids=lambda scheduler: "-".join(map(str, scheduler.values())),
)
def test_every_kind_of_schedule(tiny_pipeline: Build, scheduler: dict[str, Any]) -> None:
    model = StableDiffusion(tiny_pipeline(**scheduler), "tiny")
    negative = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
    expected = diffusers_images(tiny_pipeline(**scheduler), model, negative)
    torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)


def diffusers_images(pipeline: StableDiffusionPipeline, model: StableDiffusion, negative: torch.Tensor) -> torch.Tensor:
    return TestStableDiffusion1().call(pipeline, model, PROMPTS, negative_prompt_embeds=negative.expand(3, -1, -1))


def test_a_model_with_another_scheduler_is_sampled_by_ddim(tiny_pipeline: Build) -> None:
    for kind in (PNDMScheduler, DDPMScheduler):
        pipeline = tiny_pipeline()
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
        model = StableDiffusion(pipeline, "tiny")
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        null = model.null_embedding()
        expected = diffusers_images(pipeline, model, null)
        torch.testing.assert_close(images_of(model, PROMPTS, null), expected, atol=1e-4, rtol=0)


def test_a_flow_matching_scheduler_is_refused(tiny_pipeline: Build) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        StableDiffusion(pipeline, "tiny")


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
    latents = noise(model, 2).requires_grad_()
    images = model.decode(latents)
    with torch.no_grad():
        raw = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(images, pipeline.image_processor.postprocess(raw, output_type="pt"))
    assert ((images == 0) | (images == 1)).any()  # so the clamp was at work
    (gradient,) = torch.autograd.grad(images.sum(), latents)
    assert (gradient != 0).all()


def test_an_encoder_rounded_to_bfloat16_is_told_by_its_files(tmp_path: Path) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path / "model", variant="fp16")
    rounded = StableDiffusionPipeline.from_pretrained(tmp_path / "model", variant="fp16", dtype=torch.bfloat16)
    n = {"negative_prompt_embeds": torch.randn(1, 12, 16)}
    mine = NegativeEmbedding(n, EmbeddingMetadata(identify(build_tiny_pipeline()).hash))
    mine.for_pipeline(rounded)
    with pytest.raises(UserError, match="learned for"):
        NegativeEmbedding(n, EmbeddingMetadata(identify(build_tiny_pipeline(seed=1)).hash)).for_pipeline(rounded)
    rounded.text_encoder.config._name_or_path = str(tmp_path / "gone")
    with pytest.raises(UserError, match=r"bfloat16.*gone"):
        mine.for_pipeline(rounded)
    with pytest.raises(UserError, match=r"bfloat16.*any folder"):
        mine.for_pipeline(build_tiny_pipeline().to(torch.bfloat16))


def test_the_hash_counts_what_decides_the_output(tiny_pipeline: Build) -> None:
    encoder = tiny_pipeline().text_encoder
    before = hash_text_encoder(encoder)
    encoder.config._name_or_path = "elsewhere"
    assert hash_text_encoder(encoder) == before
    encoder.config.hidden_act = "gelu"
    assert hash_text_encoder(encoder) != before
