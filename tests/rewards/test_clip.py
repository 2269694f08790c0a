"""CLIPScore beside open_clip's model of OpenAI's kind."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP

from renege_ray.errors import UserError
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.vision import centre_crop, normalise
from tests.rewards.clip_folders import clip_folder
from tests.rewards.conformance import PROMPTS, Load, RewardConformance
from tests.rewards.open_clip_models import text_features
from tests.rewards.photographs import photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def reference(folder: Path) -> CLIP:
    return clip_folder(folder, quick_gelu=True)


@pytest.fixture(scope="module")
def load(folder: Path, reference: CLIP) -> Load:
    return cache(lambda dtype: load_rewards(["clip"], checkpoints={"clip": folder}, dtype=dtype)["clip"])


class TestConformance(RewardConformance):
    """Of CLIPScore."""


def test_scores_and_gradients_are_those_of_open_clip(load: Load, reference: CLIP) -> None:
    texts = text_features(reference, [*PROMPTS])
    for image in photographs().values():
        four = image.expand(len(PROMPTS), -1, -1, -1).clone().requires_grad_()
        expected = (reference.encode_image(normalise(centre_crop(four, 224)), normalize=True) * texts).sum(1)
        found = load("float32")(four, PROMPTS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        (right,) = torch.autograd.grad(expected.sum(), four)
        (ours,) = torch.autograd.grad(found.sum(), four)
        torch.testing.assert_close(ours / right.abs().max(), right / right.abs().max(), rtol=0, atol=1e-6)


def test_the_activation_is_that_of_config_json(folder: Path, reference: CLIP, tmp_path: Path) -> None:
    """The same weights under gelu give scores that are off by more than the comparison above allows."""
    config = json.loads((folder / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == "quick_gelu"
    for tower in ("vision_config", "text_config"):
        config[tower]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    wrong = load_rewards(["clip"], checkpoints={"clip": tmp_path}, dtype="float32")["clip"]
    image = photographs()["coffee"]
    features = reference.encode_image(normalise(centre_crop(image, 224)), normalize=True)
    expected = (features @ text_features(reference, [PROMPTS[0]]).T)[0]
    assert (wrong.score(image, PROMPTS[:1]) - expected).abs() > 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"model_type": "bert"}', "is of a 'bert' model"),
        ('{"model_type": "clip", "text_config": 3}', "cannot be read"),
        ('{"model_type": "clip"}', "does not fit"),
    ],
)
def test_bad_folders(content: str, message: str, folder: Path, reference: CLIP, tmp_path: Path) -> None:
    """The last is a CLIP of transformers' default size, which these weights are not of."""
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_rewards(["clip"], checkpoints={"clip": tmp_path})
    assert "\n" not in str(caught.value)
