"""VBench's measures of steadiness, against its definitions written out a frame at a time in float64."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from renege_ray.errors import UserError
from renege_ray.rewards.load import load_scorers
from renege_ray.rewards.video.video_metrics import frame_consistency, temporal_flickering
from renege_ray.sampling.images import score

NAMES = ("temporal_flickering", "subject_consistency", "background_consistency")
PROMPTS = ["a", "b"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny networks of the two architectures in transformers' format."""
    folder = tmp_path_factory.mktemp("networks")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(image_size=64, patch_size=16, **sizes)).save_pretrained(folder / "dino")
        clip = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=12, **sizes)
        CLIPVisionModelWithProjection(clip).save_pretrained(folder / "clip")
    return {"dino": str(folder / "dino"), "clip_b": str(folder / "clip")}


@pytest.fixture
def videos() -> Tensor:
    """(2, 3, 4, 20, 36), the second one almost still."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, 4, 20, 36, generator=generator)
    still = torch.rand(3, 1, 20, 36, generator=generator).expand(-1, 4, -1, -1)
    return torch.stack([first, (still + 0.02 * torch.rand(first.shape, generator=generator)).clamp(0, 1)])


def frames_of(video: Tensor) -> np.ndarray:
    """(F, H, W, 3) uint8, as read from a lossless file."""
    return (video.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).numpy()


def by_definition(features: list[np.ndarray]) -> float:
    """VBench's sum over frames, with its cosine that is never below 0."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.0, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    pairs = range(1, len(features))
    total = sum((cosine(features[i - 1], features[i]) + cosine(features[0], features[i])) / 2 for i in pairs)
    return total / (len(features) - 1)


def test_flickering(videos: Tensor) -> None:
    for value, video in zip(temporal_flickering(videos), videos, strict=True):
        frames = frames_of(video).astype(np.float64)
        changes = [np.abs(a - b).mean() for a, b in pairwise(frames)]
        assert value.item() == pytest.approx((255 - np.mean(changes)) / 255, abs=1e-6)
    blinking = torch.tensor([0.0, 1.0, 0.0])[None, None, :, None, None].expand(1, 3, -1, 4, 4)
    assert temporal_flickering(blinking).item() == 0
    assert temporal_flickering(blinking[:, :, :1].expand(-1, -1, 3, -1, -1)).item() == 1


def test_consistency_of_features() -> None:
    features = torch.randn(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = [by_definition(list(rows.numpy())) for rows in features]
    assert frame_consistency(features).tolist() == pytest.approx(expected, abs=1e-12)
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert frame_consistency(opposite).item() == 0, "never below 0"


def test_scorers_are_as_the_package_computes_them(videos: Tensor, checkpoints: dict[str, str]) -> None:
    """Its transforms are torchvision's, on frames in 8 bits."""
    scorers = load_scorers(NAMES, checkpoints=checkpoints)
    found = score(list(scorers.values()), videos, PROMPTS)
    dino = ViTModel.from_pretrained(checkpoints["dino"])
    clip = CLIPVisionModelWithProjection.from_pretrained(checkpoints["clip_b"])
    for_dino = Compose([Resize(224, antialias=False), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    for_clip = Compose(
        [
            Resize(32, interpolation=InterpolationMode.BICUBIC, antialias=False),
            CenterCrop(32),
            Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    for i, video in enumerate(videos):
        frames = torch.from_numpy(frames_of(video)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            subject = [
                dino(for_dino(f)[None], interpolate_pos_encoding=True).last_hidden_state[0, 0].double().numpy()
                for f in frames
            ]
            background = [clip(for_clip(f)[None]).image_embeds[0].double().numpy() for f in frames]
        assert found["subject_consistency"][i].item() == pytest.approx(by_definition(subject), abs=1e-5)
        assert found["background_consistency"][i].item() == pytest.approx(by_definition(background), abs=1e-5)
    for name in NAMES:
        assert found[name][0] < found[name][1] < 1


def test_what_does_not_move_has_no_measure(videos: Tensor, checkpoints: dict[str, str]) -> None:
    for name, scorer in load_scorers(NAMES, checkpoints=checkpoints).items():
        for images in (videos[:, :, 0], videos[:, :, :1]):
            assert scorer.score(images, PROMPTS)[name].isnan().all()


def test_networks_that_are_not_there(checkpoints: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dino: there is no 'nowhere'"):
        load_scorers(["subject_consistency"], checkpoints={"dino": "nowhere"})
    with pytest.raises(UserError, match=r"cannot be read|is it the file of another model"):
        load_scorers(["subject_consistency"], checkpoints={"dino": checkpoints["clip_b"]})
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("noise")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        load_scorers(["background_consistency"], checkpoints={"clip_b": str(tmp_path)})
