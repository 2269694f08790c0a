import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS
from renege_ray.models.families.registry import check_family
from renege_ray.models.families.z_image import ZImage
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.guidance import check_gradient_steps
from renege_ray.models.load import identify_text_encoder
from tests.models.conformance import PROMPTS, STEPS, Conformance, images_of, sampled
from tests.tiny import build_tiny_z_image

SIZE = {"height": 16, "width": 16}


class TestZImage(Conformance):
    CALL: ClassVar[dict[str, Any]] = SIZE
    OPTIONS: ClassVar[dict[str, Any]] = {"size": (16, 16)}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_z_image(seed=seed)

    def test_the_parts_of_an_embedding(self, model: FrozenPipeline) -> None:
        assert model.embedding_layout.shapes == {PROMPT_EMBEDS: (1, 64, 24), ATTENTION_MASK: (1, 64)}
        assert model.embedding_shape == (512, 25) and model.latent_shape == (16, 8, 8)
        template = model.encode_prompts([""])[..., 24].sum()
        assert model.encode_prompts(["abc"])[..., 24].sum() == template + 3

    def test_images_are_1024_pixels_a_side_by_default(self, folder: Path) -> None:
        assert self.load(folder, size=None).latent_shape == (
            16,
            512,
            512,
        )  # the tiny decoder's latents are 2 x 2 pixels
        with pytest.raises(UserError, match="no multiple of 4"):
            self.load(folder, size=(16, 18))

    @pytest.mark.parametrize(
        "options", [{"cfg_normalization": 1.0}, {"cfg_normalization": 0.8, "cfg_truncation": 0.15}]
    )
    def test_options_of_its_guidance(self, model: FrozenPipeline, pipeline: Any, options: dict[str, float]) -> None:
        negative = self.negative(model)
        arguments = self.embedding(model, negative).for_pipeline(pipeline, PROMPTS)
        expected = self.call(pipeline, model, PROMPTS, **arguments, **options)
        images = images_of(model, PROMPTS, negative, sampled(**options))
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
        assert (images - images_of(model, PROMPTS, negative)).abs().max() > 1e-3

    def test_the_scale_is_the_pipelines(self, model: FrozenPipeline) -> None:
        schedule = model.schedule(STEPS)
        assert model.guidance(sampled(0.5), schedule).at(0) == 1.5
        with pytest.raises(UserError, match=r"not above 0, .*e_c \+ g \(e_c - e_n\)"):
            model.guidance(sampled().model_copy(update={"guidance_scale": 0.0}), schedule)

    def test_steps_behind_the_truncation_have_no_gradient(self, model: FrozenPipeline) -> None:
        schedule, sampling = model.schedule(STEPS), sampled(cfg_truncation=0.15)
        guidance = model.guidance(sampling, schedule)
        assert [guidance.at(i) > 1 for i in range(STEPS)] == ((1000 - schedule.timesteps) / 1000 <= 0.15).tolist()
        with pytest.raises(UserError, match="without guidance"):
            check_gradient_steps(guidance, sampling)

    @pytest.mark.parametrize("scheduler", [{"use_dynamic_shifting": True}, {"shift": 1.5}])
    def test_other_schedules(self, scheduler: dict[str, Any], tmp_path: Path) -> None:
        build_tiny_z_image(**scheduler).save_pretrained(tmp_path)
        model, pipeline = self.load(tmp_path), self.plain_pipeline(tmp_path)
        expected = self.call(pipeline, model, PROMPTS)
        torch.testing.assert_close(images_of(model, PROMPTS, model.null_embedding()), expected, atol=1e-4, rtol=0)

    def test_learning_starts_from_the_text_filled_up(self, model: FrozenPipeline) -> None:
        null = model.null_embedding()
        length = int(null[..., 24].sum())
        start = model.starting_point(null)
        assert torch.equal(start[:, :length], null[:, :length]) and start[..., 24].sum() == 64
        assert len(start[0, :64].unique(dim=0)) == 64 and start[:, 64:].eq(0).all()
        assert torch.equal(model.starting_point(start), start), "a second time changes nothing"
        with pytest.raises(UserError, match=r"model.negative_tokens: 64, .*give 128, or a shorter text"):
            model.starting_point(model.encode_prompts(["a" * (100 - length)]))

    def test_the_number_of_tokens_is_a_setting(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, negative_tokens=40)
        assert model.embedding_layout.shapes[PROMPT_EMBEDS] == (1, 40, 24)
        assert identify_text_encoder(ModelConfig(id=str(folder), negative_tokens=40)).layout == model.embedding_layout
        negative = self.negative(model)
        embedding = self.embedding(model, negative)
        expected = self.call(pipeline, model, PROMPTS, **embedding.for_pipeline(pipeline, PROMPTS))
        torch.testing.assert_close(images_of(model, PROMPTS, negative), expected, atol=1e-4, rtol=0)
        other = self.load(folder)  # one of another length serves a model as it is
        packed = other.embedding_layout.fitting(40).pack(embedding.tensors)
        torch.testing.assert_close(images_of(other, PROMPTS, packed), expected, atol=1e-4, rtol=0)
        with pytest.raises(UserError, match="more than the 512"):
            self.load(folder, negative_tokens=513)

    def test_turbo_is_refused_by_its_schedule(self, tmp_path: Path) -> None:
        build_tiny_z_image(shift=3.0).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"distilled.*shift 3"):
            check_family(tmp_path, "mine")
        assert not ZImage.distilled({}, {"shift": 6.0})

    def test_an_encoder_is_known_by_its_files_that_name_a_language_model(
        self, model: FrozenPipeline, folder: Path, tmp_path: Path
    ) -> None:
        """As published: the pipeline loads a Qwen3Model from what says that it is a Qwen3ForCausalLM."""
        copy = Path(shutil.copytree(folder, tmp_path / "published"))
        file = copy / "text_encoder" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["Qwen3ForCausalLM"]}))
        weights = copy / "text_encoder" / "model.safetensors"
        save_file({f"model.{name}": tensor for name, tensor in load_file(weights).items()}, weights)
        embedding = self.embedding(model, self.negative(model))
        embedding.for_pipeline(self.plain_pipeline(copy, dtype=torch.bfloat16), PROMPTS)
        assert identify_text_encoder(ModelConfig(id=str(copy))).hash == model.text_encoder_hash
