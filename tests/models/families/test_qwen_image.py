from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.base import TextToImage
from renege_ray.models.families.registry import check_family
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.networks.patches import pack, unpack
from tests.models.conformance import PROMPTS, STEPS, Conformance, W, images_of, noise, sampled
from tests.tiny_packed import build_tiny_qwen_image


class TestQwenImage(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"height": 16, "width": 16}
    OPTIONS: ClassVar[dict[str, Any]] = {"size": (16, 16)}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_qwen_image(seed=seed)

    def call(self, pipeline: Any, model: TextToImage, prompts: Sequence[str], **arguments: Any) -> Tensor:
        """By its `true_cfg_scale`, with packed latents; without a negative it would not guide."""
        if not any(name.startswith("negative") for name in arguments):
            arguments["negative_prompt"] = [" "] * len(prompts)
        given = {} if "prompt_embeds" in arguments else {"prompt": list(prompts)}
        fixed = {"num_inference_steps": STEPS, "true_cfg_scale": W, "output_type": "pt"}
        latents = pack(noise(model, len(prompts))).to(pipeline.dtype)
        return self.pixels(pipeline(**given, **fixed, **self.CALL, **arguments, latents=latents))

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 64, 24), ATTENTION_MASK: (1, 64)}
        assert model.embedding_shape == (512, 25) and model.latent_shape == (16, 8, 8)
        template = model.encode_prompts([""])[..., 24].sum()
        assert template == len("SassistantN") + 2, "what comes after the prompt; what is before it is dropped"
        assert model.encode_prompts(["abc"])[..., 24].sum() == template + 3

    def test_null_is_a_space_since_without_a_negative_nothing_guides(self, model: FrozenPipeline) -> None:
        assert torch.equal(model.null_embedding(), model.encode_prompts([" "]))

    @pytest.mark.parametrize("scheduler", [{"use_dynamic_shifting": False, "shift": 3.0}, {"shift_terminal": None}])
    def test_other_schedules(self, scheduler: dict[str, Any], tmp_path: Path) -> None:
        build_tiny_qwen_image(**scheduler).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_other_sizes(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, size=(8, 20))
        assert model.latent_shape == (16, 4, 10)
        given = {"true_cfg_scale": W, "num_inference_steps": STEPS, "output_type": "pt", "height": 8, "width": 20}
        expected = pipeline(["a"], [" "], latents=pack(noise(model, 1)), **given).images
        torch.testing.assert_close(images_of(model, ["a"], model.null_embedding()), expected, atol=1e-4, rtol=0)
        assert self.load(folder, size=None).latent_shape == (16, 512, 512)
        with pytest.raises(UserError, match="no multiple of 4"):
            self.load(folder, size=(16, 18))

    def test_negatives_of_different_lengths_in_one_batch(self, model: FrozenPipeline, pipeline: Any) -> None:
        """As prompts that have each their own: the mask keeps the shorter ones' filling out."""
        texts = ["bad", "worse, by far", ""]
        rows = model.embedding_layout.unpack(model.encode_prompts(texts))
        given = type(model).negative_arguments(rows)
        assert given["negative_prompt_embeds_mask"].sum(dim=1).unique().numel() == 3
        expected = self.call(pipeline, model, PROMPTS, **given)
        torch.testing.assert_close(images_of(model, PROMPTS, model.encode_prompts(texts)), expected, atol=1e-4, rtol=0)

    def test_the_scale_is_the_pipelines(self, model: FrozenPipeline) -> None:
        schedule = model.schedule(STEPS)
        guidance = model.guidance(sampled(4.0), schedule)
        assert guidance.at(0) == 4.0 and guidance.rescale is not None
        with pytest.raises(UserError, match=r"not above 1, .*true_cfg_scale"):
            model.guidance(sampled(1.0), schedule)

    def test_only_the_direction_of_a_token_is_guided(self, model: FrozenPipeline) -> None:
        """Each 2 x 2 latents of all channels have the norm that they have in e_c."""
        guidance = model.guidance(sampled(4.0), model.schedule(STEPS))
        e_n, e_c = noise(model, 2), noise(model, 2, seed=1)
        torch.testing.assert_close(pack(guidance(e_n, e_c, 0)).norm(dim=-1), pack(e_c).norm(dim=-1))

    def test_the_number_of_tokens_is_a_setting(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=20)
        assert model.embedding_layout.shapes[PROMPT_EMBEDS] == (1, 20, 24)
        negative = self.negative(model)
        expected = self.call(
            pipeline, model, PROMPTS, **self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        )
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="more than the 512"):
            self.load(folder, negative_tokens=513)

    def test_a_transformer_that_is_told_the_scale_is_refused(self, tmp_path: Path) -> None:
        build_tiny_qwen_image(transformer={"guidance_embeds": True}).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"distilled.*guidance_embeds"):
            check_family(tmp_path, "mine")


def test_packing_is_that_of_the_pipeline() -> None:
    from diffusers import QwenImagePipeline

    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    tokens = pack(x)
    assert torch.equal(tokens, QwenImagePipeline._pack_latents(x, 2, 3, 4, 6))
    assert torch.equal(unpack(tokens, 4, 6), x)
