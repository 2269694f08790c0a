from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from renege_ray.errors import UserError
from renege_ray.method.embedding import PROMPT_EMBEDS
from renege_ray.models.base import TextToImage
from renege_ray.models.families.registry import check_family
from renege_ray.models.frozen_pipeline import FrozenPipeline
from tests.models.conformance import PROMPTS, STEPS, Conformance, W, images_of, noise
from tests.tiny_packed import build_tiny_klein


class TestFlux2Klein(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"height": 16, "width": 16, "max_sequence_length": 40}
    # Fewer tokens than by default, which take ten times as long.
    OPTIONS: ClassVar[dict[str, Any]] = {"size": (16, 16), "negative_tokens": 40}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_klein(seed=seed)

    def call(self, pipeline: Any, model: TextToImage, prompts: Sequence[str], **arguments: Any) -> Tensor:
        """With latents of 2 x 2 places; a negative in words comes encoded, which is the only way."""
        given = {} if "prompt_embeds" in arguments else {"prompt": list(prompts)}
        if texts := arguments.pop("negative_prompt", None):
            arguments["negative_prompt_embeds"] = pipeline.encode_prompt(texts, max_sequence_length=40)[0]
        fixed = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "pt"}
        latents = pixel_unshuffle(noise(model, len(prompts)), 2).to(pipeline.dtype)
        return self.pixels(pipeline(**given, **(fixed | self.CALL | arguments), latents=latents))

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 40, 24)}
        assert model.latent_shape == (8, 8, 8)

    def test_learning_starts_near_the_null_negative_with_no_two_tokens_alike(self, model: FrozenPipeline) -> None:
        null = model.null_embedding()
        start = model.starting_point(null)
        assert len(start[0].unique(dim=0)) == 40
        images = images_of(model, PROMPTS, null)
        other = images_of(model, PROMPTS, model.encode_prompts(["a red circle"]))
        assert (images_of(model, PROMPTS, start) - images).abs().mean() < 0.1 * (other - images).abs().mean()

    def test_the_shift_hangs_on_steps_and_size(self, tmp_path: Path) -> None:
        build_tiny_klein(use_dynamic_shifting=True, shift=3.0).save_pretrained(tmp_path)
        pipeline = self.plain_pipeline(tmp_path)
        model = self.load(tmp_path, size=(8, 20))
        latents = pixel_unshuffle(noise(model, 1), 2)
        for steps in (3, 8):
            pipeline(
                prompt="a",
                height=8,
                width=20,
                num_inference_steps=steps,
                latents=latents,
                output_type="latent",
                max_sequence_length=40,
            )
            torch.testing.assert_close(model.schedule(steps).timesteps.float(), pipeline.scheduler.timesteps)

    def test_the_number_of_tokens_is_the_pipelines_by_default(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=None)
        assert model.embedding_layout.shapes[PROMPT_EMBEDS] == (1, 512, 24)
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        assert arguments["max_sequence_length"] == 512
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)

    def test_the_distilled_one_is_refused_by_its_configuration(self, tmp_path: Path) -> None:
        build_tiny_klein(is_distilled=True).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"distilled.*is_distilled in model_index.json"):
            check_family(tmp_path, "mine")
