from pathlib import Path
from typing import Any

import pytest
import torch

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import identify_text_encoder
from tests.models.conformance import PROMPTS, STEPS, Conformance, images_of, sampled
from tests.tiny import build_tiny_sd3


class TestStableDiffusion3(Conformance):
    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_sd3(seed=seed)

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 12 + 256, 48), POOLED_EMBEDS: (1, 20 + 28)}
        assert model.latent_shape == (16, 8, 8)

    def test_learning_starts_near_the_null_negative_with_no_two_tokens_alike(self, model: FrozenPipeline) -> None:
        null = model.null_embedding()
        start = model.starting_point(null)
        assert len(start[0].unique(dim=0)) == len(start[0])
        images = images_of(model, PROMPTS, null)
        other = images_of(model, PROMPTS, model.encode_prompts(["a red circle"]))
        assert (images_of(model, PROMPTS, start) - images).abs().mean() < 0.1 * (other - images).abs().mean()
        assert torch.equal(model.starting_point(start), start), "a second time changes nothing"

    @pytest.mark.parametrize("shift", [{"use_dynamic_shifting": True}, {"shift": 1.0}, {"use_karras_sigmas": True}])
    def test_other_schedules(self, shift: dict[str, Any], tmp_path: Path) -> None:
        build_tiny_sd3(**shift).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_other_sizes_have_another_shift(self, tmp_path: Path) -> None:
        build_tiny_sd3(use_dynamic_shifting=True).save_pretrained(tmp_path)
        model, square = self.load(tmp_path, size=(8, 12)), self.load(tmp_path)
        assert model.latent_shape == (16, 4, 6)
        assert not torch.equal(model.schedule(STEPS).sigma, square.schedule(STEPS).sigma)
        pipeline = self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS, height=8, width=12)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="no multiple of 4"):
            self.load(tmp_path, size=(8, 10))

    def test_without_t5_there_are_zeros_in_its_place(self, tmp_path: Path) -> None:
        build_tiny_sd3(t5=False).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path, text_encoder_3=None, tokenizer_3=None)
        null = model.null_embedding()
        assert null[:, 12:268].eq(0).all() and null[:, :12, 40:].eq(0).all()
        assert identify_text_encoder(ModelConfig(id=str(tmp_path))).layout == model.embedding_layout
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)
        start = model.starting_point(null)
        assert len(start[0].unique(dim=0)) == len(start[0]), "zeros are told apart"
        assert model.count_truncated(["a" * 20]) == 1

    def test_the_number_of_tokens_is_a_setting(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=12 + 20)
        assert model.embedding_layout.shapes[PROMPT_EMBEDS] == (1, 32, 48)
        assert identify_text_encoder(ModelConfig(id=str(folder), negative_tokens=32)).layout == model.embedding_layout
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        assert arguments["max_sequence_length"] == 20
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)
        for wrong in (12, 12 + 513):
            with pytest.raises(UserError, match=r"model.negative_tokens between 13 and 524"):
                self.load(folder, negative_tokens=wrong)

    def test_guidance_is_plain_and_above_1(self, model: FrozenPipeline) -> None:
        schedule = model.schedule(STEPS)
        assert model.guidance(sampled(4.5), schedule).at(0) == 4.5
        with pytest.raises(UserError, match=r"not above 1, .*StableDiffusion3Pipeline"):
            model.guidance(sampled(1.0), schedule)
