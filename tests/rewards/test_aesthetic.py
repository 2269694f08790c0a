"""The aesthetic predictor beside open_clip's model of OpenAI's kind and the original's network."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from renege_ray.errors import UserError
from renege_ray.rewards.base import RewardModel
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.vision import centre_crop, normalise
from tests.rewards.clip_folders import clip_folder
from tests.rewards.conformance import Load, RewardConformance
from tests.rewards.photographs import photographs

WIDTH = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aesthetic")


@pytest.fixture(scope="module")
def tower(folder: Path) -> CLIP:
    return clip_folder(folder, quick_gelu=True)


@pytest.fixture(scope="module")
def head(folder: Path) -> nn.Sequential:
    """As the checkpoint was made: five linear layers, dropout after the first three."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Linear(WIDTH, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
            nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip
        for layer in layers:
            if isinstance(layer, nn.Linear):  # so that scores of different images differ, as they do in truth
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    state = {f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}
    torch.save(state, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return layers.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def load(folder: Path, tower: CLIP, head: nn.Sequential) -> Load:
    """One folder has both: CLIP lies beside the head."""
    return cache(lambda dtype: load_rewards(["aesthetic"], checkpoints={"aesthetic": folder}, dtype=dtype)["aesthetic"])


class TestConformance(RewardConformance):
    """Of the aesthetic predictor."""

    is_cosine = False  # the head's random weights make it about the size of one
    reads_prompts = False


def test_scores_are_those_of_the_original(load: Load, tower: CLIP, head: nn.Sequential) -> None:
    for image in photographs().values():
        expected = head(tower.encode_image(normalise(centre_crop(image, 224)), normalize=True))[:, 0]
        torch.testing.assert_close(load("float32").score(image, [""]), expected, rtol=0, atol=1e-5)


def test_another_clip_is_refused(folder: Path, load: Load, tmp_path: Path) -> None:
    """LAION's own CLIP ViT-L/14 has the same shapes, but was trained with gelu."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match="has hidden_act gelu"):
        load_rewards(["aesthetic"], checkpoints={"aesthetic": load("float32").checkpoint, "clip": tmp_path})


def test_both_files_can_be_given(folder: Path, load: Load, tmp_path: Path) -> None:
    head = tmp_path / "head.pth"
    head.write_bytes(load("float32").checkpoint.read_bytes())
    reward: RewardModel = load_rewards(["aesthetic"], checkpoints={"aesthetic": head, "clip": folder})["aesthetic"]
    image = photographs()["coffee"]
    assert torch.equal(reward.score(image, [""]), load("float32").score(image, [""]))
    assert reward.sha256 == load("float32").sha256
