"""PickScore beside transformers' CLIPModel, as its authors use it, and beside open_clip."""

from functools import cache
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from transformers import CLIPModel

from renege_ray.rewards.clip_tokens import read_merges
from renege_ray.rewards.load import load_rewards
from renege_ray.rewards.vision import centre_crop, normalise
from tests.rewards.clip_folders import clip_folder
from tests.rewards.conformance import ODD_PROMPTS, PROMPTS, Load, RewardConformance
from tests.rewards.open_clip_models import VOCABULARY
from tests.rewards.photographs import photographs
from tests.rewards.test_clip_tokens import transformers_tokenizer

LOGIT_SCALE = 1 / 0.07  # open_clip's initial one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickscore")


@pytest.fixture(scope="module")
def reference(folder: Path) -> CLIP:
    return clip_folder(folder, quick_gelu=False)


@pytest.fixture(scope="module")
def load(folder: Path, reference: CLIP) -> Load:
    return cache(lambda dtype: load_rewards(["pickscore"], checkpoints={"pickscore": folder}, dtype=dtype)["pickscore"])


class TestConformance(RewardConformance):
    """Of PickScore."""

    scale = LOGIT_SCALE


def test_scores_are_those_of_the_model_card(load: Load, folder: Path, reference: CLIP) -> None:
    """logit_scale * cosine, texts padded with the end token and masked, images as CLIP's processor cuts them."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers_tokenizer(read_merges(VOCABULARY))
    prompts = [*PROMPTS, *ODD_PROMPTS, "a very long prompt " * 40]
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    for image in photographs().values():
        pixels = normalise(centre_crop(image, 224))
        with torch.no_grad():
            expected = model(**tokens, pixel_values=pixels).logits_per_image[0]
        found = load("float32").score(image.expand(len(prompts), -1, -1, -1), prompts)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * LOGIT_SCALE)
        features = reference.encode_image(pixels, normalize=True)
        torch.testing.assert_close(load("float32").image_features(image), features, rtol=0, atol=1e-5)
