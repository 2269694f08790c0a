from pathlib import Path
from typing import Any

import torch

from renege_ray.method.embedding import POOLED_EMBEDS, PROMPT_EMBEDS
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.models.frozen_pipeline import FrozenPipeline
from tests.models.conformance import PROMPTS, Conformance, images_of
from tests.tiny import build_tiny_sdxl


class TestStableDiffusionXL(Conformance):
    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_sdxl(seed=seed)

    def test_latents_with_a_mean_and_a_deviation_of_their_own(self, tmp_path: Path) -> None:
        """As some fine-tuned models have them (Playground v2.5); only SDXL's pipeline looks at them."""
        tiny = self.build()
        tiny.vae.register_to_config(latents_mean=[0.1, 0.2, -0.3, 0.4], latents_std=[1.1, 0.9, 0.8, 1.3])
        tiny.save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS, negative_prompt=["bad", "bad", "bad"])
        images = images_of(model, PROMPTS, model.encode_prompts(["bad"]))
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 12, 40), POOLED_EMBEDS: (1, 20)}
        assert model.embedding_shape == (13, 40)
        packed = model.encode_prompts(PROMPTS)
        assert packed[:, 12, 20:].eq(0).all() and packed[:, 12, :20].ne(0).all()

    def test_null_is_zeros_only_where_the_pipeline_says_so(self, model: FrozenPipeline) -> None:
        assert model.null_embedding().eq(0).all()
        pipeline = self.build()
        pipeline.register_to_config(force_zeros_for_empty_prompt=False)
        other = StableDiffusionXL(pipeline, "tiny")
        assert torch.equal(other.null_embedding(), other.encode_prompts([""]))
        assert torch.equal(model.starting_point(model.encode_prompts([""])), model.encode_prompts([""]))

    def test_the_pooled_negative_has_an_effect(self, model: FrozenPipeline) -> None:
        negative = self.negative(model)
        other = negative.clone()
        other[:, 12, :20] *= -1
        assert (images_of(model, PROMPTS, negative) - images_of(model, PROMPTS, other)).abs().max() > 1e-3

    def test_the_decoder_stays_in_float32_where_float16_overflows(self) -> None:
        model = StableDiffusionXL(self.build(), "tiny", dtype=torch.float16)
        assert model.pipeline.vae.dtype == torch.float32 and model.pipeline.unet.dtype == torch.float16
        assert model.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32
        pipeline = self.build()
        pipeline.vae.register_to_config(force_upcast=False)
        assert StableDiffusionXL(pipeline, "tiny", dtype=torch.float16).pipeline.vae.dtype == torch.float16
