"""HPSv2 beside open_clip, which the original runs on, and beside the original where it is installed."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from renege_ray.errors import UserError
from renege_ray.rewards.clip_towers import ClipReward, clip_from_open_clip
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.vision import letterbox, normalise
from tests.rewards.conformance import PROMPTS, Load, RewardConformance
from tests.rewards.open_clip_models import HPSV2_TOWERS, VOCABULARY, open_clip_model, save_checkpoint, text_features
from tests.rewards.photographs import photographs


@pytest.fixture(scope="module")
def reference() -> CLIP:
    return open_clip_model()


@pytest.fixture(scope="module")
def checkpoint(reference: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(reference, tmp_path_factory.mktemp("hpsv2") / "HPS_v2.1_compressed.pt")


@pytest.fixture(scope="module")
def load(checkpoint: Path) -> Load:
    return cache(lambda dtype: load_rewards(["hpsv2"], checkpoints={"hpsv2": checkpoint}, dtype=dtype)["hpsv2"])


class TestConformance(RewardConformance):
    """Of HPSv2."""


def pixels_of_the_package(image: Tensor) -> Tensor:
    """One image (3, H, W) -> (3, 224, 224), by torchvision, as hpsv2 1.2.0 prepares it."""
    height, width = image.shape[1:]
    scale = 224 / max(height, width)
    size = [round(height * scale), round(width * scale)]
    image = tv.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
    down, right = 224 - size[0], 224 - size[1]
    image = tv.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
    return tv.normalize(image, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize("photograph", photographs())
def test_preprocessing_is_that_of_the_package(photograph: str) -> None:
    image = photographs()[photograph]
    for turned in (image, image.transpose(2, 3), image[..., :200, :111]):
        expected = pixels_of_the_package(turned[0])
        torch.testing.assert_close(normalise(letterbox(turned, 224))[0], expected, rtol=0, atol=1e-6)


def test_features_and_scores_are_those_of_open_clip(load: Load, reference: CLIP) -> None:
    reward = load("float32")
    assert isinstance(reward, ClipReward)
    texts = text_features(reference, [*PROMPTS])
    torch.testing.assert_close(reward.text_features(PROMPTS), texts, rtol=0, atol=1e-5)
    for image in photographs().values():
        features = reference.encode_image(pixels_of_the_package(image[0])[None], normalize=True)
        torch.testing.assert_close(reward.image_features(image), features, rtol=0, atol=1e-5)
        expected = (features @ texts.T)[0]
        found = reward.score(image.expand(len(PROMPTS), -1, -1, -1), PROMPTS)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("photograph", photographs())
def test_the_image_gradient_is_that_of_open_clip(load: Load, reference: CLIP, photograph: str) -> None:
    """To 1e-6 of the largest entry, as gradients of one pixel are themselves about 1e-5."""
    image, prompt = photographs()[photograph].clone().requires_grad_(), PROMPTS[0]
    features = reference.encode_image(pixels_of_the_package(image[0])[None], normalize=True)
    (expected,) = torch.autograd.grad((features * text_features(reference, [prompt])).sum(), image)
    (found,) = torch.autograd.grad(load("float32")(image, [prompt]).sum(), image)
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(found / largest, expected / largest, rtol=0, atol=1e-6)


def test_another_activation_would_show(checkpoint: Path, reference: CLIP) -> None:
    """gelu, not OpenAI's quick_gelu."""
    pixels = pixels_of_the_package(photographs()["coffee"][0])[None]
    expected = reference.encode_image(pixels)
    right, wrong = (
        clip_from_open_clip(checkpoint, act, torch.float32).get_image_features(pixels).pooler_output
        for act in ("gelu", "quick_gelu")
    )
    torch.testing.assert_close(right, expected, rtol=0, atol=1e-5)
    assert (wrong - expected).abs().max() > 1e-3


@pytest.mark.slow
def test_the_real_widths(tmp_path: Path) -> None:
    """ViT-H/14 with one layer a tower: attention heads are 80 wide in one, 64 in the other."""
    reference = open_clip_model(layers=1, **HPSV2_TOWERS)
    assert len(reference.state_dict()) == 686 - 12 * (31 + 23)
    checkpoint = save_checkpoint(reference, tmp_path / "HPS_v2_compressed.pt")
    reward = load_rewards(["hpsv2-v2.0"], checkpoints={"hpsv2-v2.0": tmp_path}, dtype="float32")["hpsv2-v2.0"]
    assert isinstance(reward, ClipReward)
    assert reward.name == "hpsv2-v2.0" and reward.version == "v2.0" and reward.checkpoint == checkpoint
    image = photographs()["chelsea"]
    features = reference.encode_image(pixels_of_the_package(image[0])[None], normalize=True)
    torch.testing.assert_close(reward.image_features(image), features, rtol=0, atol=1e-5)
    texts = text_features(reference, [PROMPTS[0]])
    torch.testing.assert_close(reward.text_features(PROMPTS[:1]), texts, rtol=0, atol=1e-5)


def test_texts_are_encoded_once(load: Load) -> None:
    reward = load("float32")
    assert isinstance(reward, ClipReward)
    encoded: list[int] = []
    hook = reward.model.text_model.register_forward_hook(lambda *_: encoded.append(1))
    images = torch.rand(3, 3, 8, 8)
    for _ in range(2):
        reward(images, ["never seen before", "never seen before", "nor this one"])
    hook.remove()
    assert len(encoded) == 2


def test_the_version_is_named(load: Load, checkpoint: Path) -> None:
    assert load("float32").name == "hpsv2-v2.1" and load("float32").version == "v2.1"
    with pytest.raises(UserError, match=r"is the file of hpsv2-v2\.1; call it by that name"):
        load_rewards(["hpsv2-v2.0"], checkpoints={"hpsv2-v2.0": checkpoint})


def test_files_of_other_models(reference: CLIP, tmp_path: Path) -> None:
    state = reference.state_dict()
    cases: dict[str, Any] = {
        "no CLIP in open_clip's layout": {"layers.0.weight": torch.zeros(2)},
        "there is nothing": {name: tensor for name, tensor in state.items() if name != "visual.ln_pre.bias"},
        r"has to be \(64,\)": state | {"ln_final.bias": torch.zeros(65)},
        "holds no weights": {"epoch": 3},
        "is 96 wide, which heads 64 wide do not fill": state | {"ln_final.weight": torch.ones(96)},
    }
    for i, (message, weights) in enumerate(cases.items()):
        torch.save({"state_dict": weights}, tmp_path / f"{i}.pt")
        with pytest.raises(UserError, match=message) as caught:
            load_rewards(["hpsv2"], checkpoints={"hpsv2": tmp_path / f"{i}.pt"})
        assert "\n" not in str(caught.value)


def test_the_package_itself(checkpoint: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install renege-ray[hpsv2]` in an environment of its own, whose old pytest is enough for this file."""
    pytest.importorskip("hpsv2")
    real_open = gzip.open
    # The package was published without its vocabulary, which it opens when it is imported.
    monkeypatch.setattr(gzip, "open", lambda path, *args: real_open(path if Path(path).exists() else VOCABULARY, *args))
    from hpsv2 import img_score
    from hpsv2.src.open_clip import CLIP as PackageCLIP
    from hpsv2.src.open_clip import image_transform

    model = PackageCLIP(
        embed_dim=512,
        vision_cfg={"image_size": 224, "patch_size": 14, "layers": 2, "width": 128, "head_width": 64},
        text_cfg={"context_length": 77, "vocab_size": 49408, "layers": 2, "width": 64, "heads": 1},
        output_dict=True,
    )
    monkeypatch.setattr(
        img_score,
        "model_dict",
        {"model": model, "preprocess_val": image_transform(224, is_train=False, resize_longest_max=True)},
    )
    for name, image in photographs().items():
        for prompt in (*PROMPTS, "fox &amp; “snow” ﬁ", "a red fox " * 50):
            picture = Image.fromarray(getattr(data, name)())
            (expected,) = img_score.score(picture, prompt, cp=str(checkpoint), hps_version="v2.1")
            assert load("float32").score(image, [prompt]).item() == pytest.approx(float(expected), abs=1e-5)
