from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.guidance import check_gradient_steps
from renege_ray.models.load import identify_text_encoder
from tests.models.conformance import PROMPTS, STEPS, Conformance, images_of, sampled
from tests.tiny import LUMINA2_SYSTEM, build_tiny_lumina2


class TestLumina2(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"height": 64, "width": 64}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_lumina2(seed=seed)

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 64, 24), ATTENTION_MASK: (1, 64)}
        assert model.embedding_shape == (256, 25) and model.latent_shape == (16, 8, 8)

    def test_prompts_stand_behind_the_system_prompt_and_negatives_alone(self, model: FrozenPipeline) -> None:
        assert model.pipeline.system_prompt == LUMINA2_SYSTEM
        prompts, negatives = model.encode_prompts(["", "abc"]), model.encode_negatives(["", "abc"])
        lengths = [embeds[..., 24].sum(dim=1).tolist() for embeds in (prompts, negatives)]
        before = 2 + len(" <Prompt Start> ")
        assert lengths == [[before, before + 3], [1, 4]]

    @pytest.mark.parametrize("options", [{"cfg_normalization": 0.0}, {"cfg_trunc_ratio": 0.6}])
    def test_options_of_its_guidance(self, model: FrozenPipeline, pipeline: Any, options: dict[str, float]) -> None:
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        expected = self.call(pipeline, model, PROMPTS, **arguments, **options)
        images = images_of(model, PROMPTS, negative, sampled(**options))
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
        assert (images - images_of(model, PROMPTS, negative)).abs().max() > 1e-3

    def test_steps_behind_the_truncation_have_no_gradient(self, model: FrozenPipeline) -> None:
        schedule, sampling = model.schedule(STEPS), sampled(cfg_trunc_ratio=0.6)
        guidance = model.guidance(sampling, schedule)
        assert [guidance.at(i) for i in range(STEPS)] == [3.0, 3.0, 3.0, 1.0, 1.0]
        with pytest.raises(UserError, match="without guidance"):
            check_gradient_steps(guidance, sampling)
        with pytest.raises(UserError, match=r"not above 1, .*Lumina2Pipeline"):
            model.guidance(sampled(1.0), schedule)

    @pytest.mark.parametrize("scheduler", [{"use_dynamic_shifting": True}, {"shift": 1.5}])
    def test_other_schedules(self, scheduler: dict[str, Any], tmp_path: Path) -> None:
        build_tiny_lumina2(**scheduler).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_other_sizes(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, size=(32, 64))
        assert model.latent_shape == (16, 4, 8)
        noise = torch.randn(1, 16, 4, 8, generator=torch.Generator().manual_seed(0))
        expected = pipeline(
            prompt=["two"], num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt", latents=noise,
            height=32, width=64,
        ).images  # fmt: skip
        torch.testing.assert_close(images_of(model, ["two"], model.null_embedding()), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="no multiple of 16"):
            self.load(folder, size=(32, 40))

    def test_learning_starts_from_the_text_filled_up(self, model: FrozenPipeline) -> None:
        null = model.null_embedding()
        start = model.starting_point(null)
        assert null[..., 24].sum() == 1 and start[..., 24].sum() == 64
        assert torch.equal(start[:, :1], null[:, :1]) and start[:, 64:].eq(0).all()
        assert len(start[0, :64].unique(dim=0)) == 64
        assert torch.equal(model.starting_point(start), start), "a second time changes nothing"
        with pytest.raises(UserError, match=r"model.negative_tokens: 64, .*101 tokens; give 128, or a shorter text"):
            model.starting_point(model.encode_negatives(["a" * 100]))

    def test_the_number_of_tokens_is_a_setting(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=40)
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 40, 24), ATTENTION_MASK: (1, 40)}
        assert identify_text_encoder(ModelConfig(id=str(folder), negative_tokens=40)).layout == model.embedding_layout
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        assert arguments[PROMPT_EMBEDS].shape == (3, 256, 24)
        assert arguments[ATTENTION_MASK].sum(dim=1).tolist() == [40] * 3
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="257 is more than the 256"):
            self.load(folder, negative_tokens=257)
