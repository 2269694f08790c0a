"""Stable Diffusion with a ControlNet, and the images that it is shown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.base import TextToImage
from renege_ray.models.families.control_images import ControlImages
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.models.load import load_model
from renege_ray.models.loading.controlnet import check_control
from tests.models.conformance import PROMPTS, Conformance, images_of
from tests.tiny import build_tiny_controlnet, build_tiny_pipeline, build_tiny_sd2, build_tiny_sdxl


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image for each prompt; their size is not that of the model."""
    folder = tmp_path_factory.mktemp("control")
    prompts = [*PROMPTS, "a"]
    pixels = torch.randint(256, (len(prompts), 24, 24, 3), generator=torch.Generator().manual_seed(3))
    for number, image in enumerate(pixels.to(torch.uint8).numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": prompt}) for i, prompt in enumerate(prompts)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


class TestStableDiffusionControlNet(Conformance):
    @pytest.fixture(autouse=True, scope="class")
    def _control(self, control: Path, request: pytest.FixtureRequest) -> None:
        request.cls.OPTIONS = {"control": str(control)}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_controlnet(seed=seed)

    def call(self, pipeline: Any, model: TextToImage, prompts: Sequence[str], **arguments: Any) -> Tensor:
        images = list(ControlImages.read(self.OPTIONS["control"]).open(prompts))
        size = {"height": 16, "width": 16}
        return super().call(pipeline, model, prompts, image=images, **size, **arguments)

    def test_the_control_image_is_seen(self, model: FrozenPipeline, folder: Path, control: Path) -> None:
        null = model.null_embedding()
        one = load_model(ModelConfig(id=str(folder), control=str(control / "0.png")), "cpu")
        both = images_of(one, PROMPTS[:2], null)
        own = images_of(model, PROMPTS[:2], null)
        torch.testing.assert_close(both[0], own[0], atol=1e-5, rtol=0)
        assert (both[1] - own[1]).abs().max() > 1e-3

    def test_samples_without_their_images_are_refused(self, model: FrozenPipeline) -> None:
        latents, embeds = torch.zeros(3, *model.latent_shape), torch.zeros(3, *model.embedding_shape)
        for shown in (model, model.for_prompts(PROMPTS[:2])):
            with pytest.raises(ValueError, match="for_prompts"):
                shown.denoise(latents, torch.tensor(1), embeds)

    def test_added_to_stable_diffusion(self, model: FrozenPipeline, tmp_path: Path, control: Path) -> None:
        """A ControlNet in a folder of its own, and the model that it was made for, are the pipeline of both."""
        build_tiny_pipeline().save_pretrained(tmp_path / "plain")
        added = {"controlnet": str(tmp_path / "net"), "control": str(control)}
        model.pipeline.controlnet.save_pretrained(tmp_path / "net")
        both = load_model(ModelConfig(id=str(tmp_path / "plain"), **added), "cpu")
        assert (both.name, both.text_encoder_hash) == ("plain + net", model.text_encoder_hash)
        null = model.null_embedding()
        assert torch.equal(images_of(both, PROMPTS, null), images_of(model, PROMPTS, null))
        build_tiny_sd2().save_pretrained(tmp_path / "sd2")
        with pytest.raises(UserError, match=r"'.*net' does not fit the model: its cross_attention_dim is 16, not 24"):
            load_model(ModelConfig(id=str(tmp_path / "sd2"), **added), "cpu")


def refused(message: str, **options: Any) -> None:
    config = ModelConfig(**options)
    with pytest.raises(UserError, match=message):
        check_control(config, Path(config.id))


def test_what_goes_together_is_known_before_anything_is_loaded(tmp_path: Path, control: Path) -> None:
    for name, build in {"net": build_tiny_controlnet, "plain": build_tiny_pipeline, "sdxl": build_tiny_sdxl}.items():
        pipeline = build()
        pipeline.save_config(tmp_path / name)
        for part in ("unet", "scheduler"):
            getattr(pipeline, part).save_config(tmp_path / name / part)
    net, plain, sdxl, images = (str(p) for p in (tmp_path / "net", tmp_path / "plain", tmp_path / "sdxl", control))
    refused("model.control: missing", id=net)
    refused("'.*plain' has no ControlNet", id=plain, control=images)
    refused("'.*sdxl' is a StableDiffusionXLPipeline; leave it out", id=sdxl, controlnet="net", control=images)
    refused("there is no 'nowhere'", id=net, control="nowhere")
    refused("has no metadata.jsonl", id=net, control=net)
    with pytest.raises(ValueError, match=r"model.control: missing"):
        ModelConfig(id=plain, controlnet="net")


def test_control_images_that_are_not_there(tmp_path: Path) -> None:
    metadata, image = tmp_path / "metadata.jsonl", tmp_path / "1.png"
    metadata.write_text('{"file_name": "1.png", "text": "a fox"}\n{"file_name": 1}')
    with pytest.raises(UserError, match=r"line 2 of .* is not like"):
        ControlImages.read(str(tmp_path))
    twice = '{"file_name": "1.png", "text": "a fox"}\n{"file_name": "2.png", "text": "a fox"}'
    metadata.write_text(twice)
    with pytest.raises(UserError, match=r"line 2 .* has the text 'a fox' of another line, with another image"):
        ControlImages.read(str(tmp_path))
    metadata.write_text('{"file_name": "1.png", "text": "a fox"}')
    with pytest.raises(UserError, match=r"names 1\.png, which is not there"):
        ControlImages.read(str(tmp_path))
    image.write_bytes(b"noise")
    images = ControlImages.read(str(tmp_path))
    with pytest.raises(UserError, match=r"2 of 3 prompts have no image, such as 'a hen'"):
        images.check(["a fox", "a hen", "a cow", "a hen"])
    with pytest.raises(UserError, match=r"1\.png cannot be read as an image \(UnidentifiedImageError\)"):
        list(images.open(["a fox"]))
