from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.families.registry import check_family
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import identify_text_encoder
from tests.models.conformance import PROMPTS, STEPS, Conformance, images_of, sampled
from tests.tiny import build_tiny_sana


class TestSana(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"height": 32, "width": 32, "use_resolution_binning": False}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_sana(seed=seed)

    @staticmethod
    def plain_pipeline(folder: Path, **options: Any) -> Any:
        """With its own solver at order 1, whose steps are Euler's."""
        pipeline = Conformance.plain_pipeline(folder, **options)
        if isinstance(pipeline.scheduler, DPMSolverMultistepScheduler):
            pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, solver_order=1)
        return pipeline

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 300, 24), ATTENTION_MASK: (1, 300)}
        assert model.embedding_shape == (300, 25) and model.latent_shape == (8, 8, 8)
        assert model.pipeline.vae_scale_factor == 4

    def test_prompts_stand_behind_the_instruction_and_negatives_alone(self, model: FrozenPipeline) -> None:
        prompts, negatives = model.encode_prompts(["", "abc"]), model.encode_negatives(["", "abc"])
        lengths = [embeds[..., 24].sum(dim=1).tolist() for embeds in (prompts, negatives)]
        # Of the instruction the first token stays, and the last.
        assert lengths == [[2, 5], [1, 4]]
        torch.testing.assert_close(prompts[0, 0], negatives[0, 0])
        assert not torch.allclose(prompts[1, 2:5], negatives[1, 1:4], atol=1e-2)

    def test_it_is_said_that_steps_are_eulers(self, model: FrozenPipeline) -> None:
        assert model.remark == "sampled by Euler's steps over the noise levels of its own DPMSolverMultistepScheduler"
        own = DPMSolverMultistepScheduler.from_config(model.pipeline.scheduler.config)
        own.set_timesteps(STEPS)
        schedule = model.schedule(STEPS)
        assert torch.equal(schedule.sigma.float(), own.sigmas[:-1])
        assert torch.equal(schedule.timesteps, own.timesteps)

    @pytest.mark.parametrize(
        "scheduler",
        [
            FlowMatchEulerDiscreteScheduler(shift=3.0),
            DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.5),
        ],
    )
    def test_other_schedulers(self, scheduler: Any, tmp_path: Path) -> None:
        build_tiny_sana(scheduler=scheduler, timestep_scale=0.5, out_channels=16).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_other_sizes(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, size=(32, 64))
        assert model.latent_shape == (8, 8, 16)
        latents = {"height": 32, "width": 64, "use_resolution_binning": False}
        noise = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
        expected = pipeline(
            prompt=["two"], num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt", latents=noise, **latents
        ).images
        torch.testing.assert_close(images_of(model, ["two"], model.null_embedding()), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="no multiple of 4"):
            self.load(folder, size=(32, 30))

    def test_learning_starts_from_the_text_filled_up(self, model: FrozenPipeline) -> None:
        """Cross-attention over copies is attention over the token, so the images are nearly the same."""
        null = model.null_embedding()
        start = model.starting_point(null)
        assert torch.equal(start[:, :1], null[:, :1]) and start[..., 24].eq(1).all()
        assert len(start[0].unique(dim=0)) == 300
        images = images_of(model, PROMPTS, null)
        other = images_of(model, PROMPTS, model.encode_negatives(["a red circle"]))
        assert (images_of(model, PROMPTS, start) - images).abs().mean() < 0.1 * (other - images).abs().mean()
        assert torch.equal(model.starting_point(start), start), "a second time changes nothing"

    def test_the_number_of_tokens_is_a_setting(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=40)
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 40, 24), ATTENTION_MASK: (1, 40)}
        assert identify_text_encoder(ModelConfig(id=str(folder), negative_tokens=40)).layout == model.embedding_layout
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        assert arguments[PROMPT_EMBEDS].shape == (3, 300, 24)
        assert arguments[ATTENTION_MASK].sum(dim=1).tolist() == [40] * 3
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="301 is more than the 300"):
            self.load(folder, negative_tokens=301)

    def test_guidance_is_plain_and_above_1(self, model: FrozenPipeline) -> None:
        schedule = model.schedule(STEPS)
        assert model.guidance(sampled(4.5), schedule).at(0) == 4.5
        with pytest.raises(UserError, match=r"not above 1, .*SanaPipeline"):
            model.guidance(sampled(1.0), schedule)

    def test_sprints_transformer_is_refused(self, tmp_path: Path) -> None:
        build_tiny_sana(guidance_embeds=True).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"distilled.*guidance_embeds"):
            check_family(tmp_path, "mine")
