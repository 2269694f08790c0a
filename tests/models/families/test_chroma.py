from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.base import TextToImage
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.networks.patches import pack
from tests.models.conformance import PROMPTS, STEPS, Conformance, W, images_of, noise, sampled
from tests.tiny_packed import build_tiny_chroma


class TestChroma(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"height": 16, "width": 16, "max_sequence_length": 40}
    # Fewer tokens than by default, which take ten times as long.
    OPTIONS: ClassVar[dict[str, Any]] = {"size": (16, 16), "negative_tokens": 40}
    MASK = torch.bfloat16

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_chroma(seed=seed)

    def call(self, pipeline: Any, model: TextToImage, prompts: Sequence[str], **arguments: Any) -> Tensor:
        """With packed latents."""
        given = {} if "prompt_embeds" in arguments else {"prompt": list(prompts)}
        fixed = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "pt"}
        latents = pack(noise(model, len(prompts))).to(pipeline.dtype)
        return self.pixels(pipeline(**given, **(fixed | self.CALL | arguments), latents=latents))

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 40, 24), ATTENTION_MASK: (1, 40)}
        assert model.latent_shape == (16, 8, 8)
        mask = model.encode_prompts(["abc"])[0, :, 24]
        assert mask.sum() == len("_abc.") + 1, "a text, its end, and the first token of padding"

    def test_padding_acts_too_though_less(self, model: FrozenPipeline) -> None:
        """What the transformer makes of its mask: it is added to the logits."""
        embeds, t = model.encode_prompts(["a red circle"]), torch.tensor(501)
        changed = embeds.clone()
        changed[:, -1, :24] += 5.0
        with torch.no_grad():
            one, other = (model.denoise(noise(model, 1), t, each) for each in (embeds, changed))
        assert (one - other).abs().max() > 1e-4

    def test_a_learned_negative_is_attended_to_as_a_whole(self, model: FrozenPipeline) -> None:
        start = model.starting_point(model.null_embedding())
        assert start[..., 24].eq(1).all() and len(start[0].unique(dim=0)) == 40
        assert torch.equal(model.starting_point(start), start), "a second time changes nothing"

    @pytest.mark.parametrize("scheduler", [{"use_dynamic_shifting": True, "shift": 3.0}, {"shift": 3.0}])
    def test_other_schedules(self, scheduler: dict[str, Any], tmp_path: Path) -> None:
        build_tiny_chroma(**scheduler).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_the_number_of_tokens_is_the_pipelines_by_default(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=None)
        assert model.embedding_layout.shapes[PROMPT_EMBEDS] == (1, 512, 24)
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        assert arguments["max_sequence_length"] == 512
        expected = self.call(pipeline, model, PROMPTS, **arguments)
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)

    def test_guidance_is_plain_and_above_1(self, model: FrozenPipeline) -> None:
        schedule = model.schedule(STEPS)
        assert model.guidance(sampled(5.0), schedule).at(0) == 5.0
        with pytest.raises(UserError, match=r"not above 1, .*ChromaPipeline"):
            model.guidance(sampled(1.0), schedule)
