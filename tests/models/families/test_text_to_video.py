"""Text-to-video models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from renege_ray.config.run import SamplingConfig
from renege_ray.errors import UserError
from renege_ray.evaluation.generate import generate as write_pictures
from renege_ray.evaluation.generate import parse_request
from renege_ray.models.frozen_pipeline import FrozenPipeline
from renege_ray.rewards.base import VideoScorer, as_scorer
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.images import evaluate, generate, make_pairs
from tests.models.conformance import STEPS, Conformance, W, images_of, noise
from tests.simple_rewards import Channel
from tests.tiny import build_tiny_video

FRAMES = 3


class TestTextToVideo(Conformance):
    CALL: ClassVar[dict[str, Any]] = {"num_frames": FRAMES}
    OPTIONS: ClassVar[dict[str, Any]] = {"frames": FRAMES}

    @staticmethod
    def build(seed: int = 0) -> Any:
        return build_tiny_video(seed=seed)

    @staticmethod
    def pixels(output: Any) -> Tensor:
        videos: Tensor = output.frames  # (B, F, 3, height, width)
        return videos.transpose(1, 2)

    def test_facts(self, model: FrozenPipeline) -> None:
        assert (model.latent_shape, model.embedding_shape) == ((4, FRAMES, 8, 8), (12, 24))
        assert images_of(model, ["a"], model.null_embedding()).shape == (1, 3, FRAMES, 16, 16)

    def test_frames_and_size_are_the_users(self, folder: Path, pipeline: Any) -> None:
        model = self.load(folder, frames=2, size=(16, 32))
        assert model.latent_shape == (4, 2, 8, 16)
        null, size = model.null_embedding(), {"num_frames": 2, "height": 16, "width": 32}
        latents = noise(model, 1)
        output = pipeline(["a"], num_inference_steps=STEPS, guidance_scale=W, output_type="pt", latents=latents, **size)
        torch.testing.assert_close(images_of(model, ["a"], null), self.pixels(output), atol=1e-4, rtol=0)
        with pytest.raises(UserError, match=r"model.size: \[16, 15\] has a side that is no multiple of 2"):
            self.load(folder, size=(16, 15))

    def test_a_video_is_judged_by_its_frames(self, model: FrozenPipeline) -> None:
        """By the evaluation that images go through; what judges whole videos sees them whole."""
        pairs = make_pairs(["a red circle", "two"], 4, run_seed=0)
        sampling = SamplingConfig(num_inference_steps=2, gradient_steps=(0, 1))
        negatives = {"null": model.null_embedding(), "bad": self.negative(model)}
        reward = Channel()
        found = evaluate(
            model, negatives, pairs, [as_scorer(reward), FrameCount()], sampling, batch_size=3, keep_images=2
        )
        encoded = EncodedPrompts(model)
        for name, negative in negatives.items():
            videos = generate(model, negative, pairs, sampling, encoded)
            prompts = [pair.prompt for pair in pairs]
            frames = torch.stack([reward(videos[:, :, f], prompts) for f in range(FRAMES)])
            torch.testing.assert_close(found.scores[name]["channel"].float(), frames.mean(dim=0), atol=1e-5, rtol=0)
            assert found.scores[name]["frames"].eq(FRAMES).all()
            torch.testing.assert_close(found.images[name], videos[:2, :, 1], atol=1e-5, rtol=0)
        assert not torch.equal(found.scores["null"]["channel"], found.scores["bad"]["channel"])

    def test_generate_writes_animated_pictures(self, folder: Path, tmp_path: Path) -> None:
        preset = tmp_path / "preset.yaml"
        preset.write_text(f"model: {{id: '{folder}', frames: {FRAMES}}}\nprompts: {{handwritten: [bad]}}\n")
        argv = ["--prompt", "a fox", "--negative", "null", "--negative", "bad", "--num-inference-steps", "2"]
        request = parse_request([*argv, "--preset", str(preset), "--output-dir", str(tmp_path / "out")])
        *pictures, grid = write_pictures(request)
        assert len(pictures) == 2 and grid.name == "grid.png"
        for path in pictures:
            with Image.open(path) as picture:
                assert (picture.n_frames, picture.size) == (FRAMES, (16, 16))


class FrameCount(VideoScorer):
    names = ("frames",)

    def score(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"frames": images.new_full((len(images),), images.shape[2])}
