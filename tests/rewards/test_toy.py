"""The embedded model's rewards, which their own tests in tests/models/toy measure."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from renege_ray.models.toy import PIPELINE_FOLDER, WEIGHTS_FOLDER
from renege_ray.models.toy.preferences import REWARD_NETWORKS, tokenize
from renege_ray.rewards.load import load_rewards
from tests.rewards.conformance import Load, RewardConformance


class ToyConformance(RewardConformance):
    compiles = False  # the networks are small
    scale = 10.0
    is_cosine = False


class TestTrained(ToyConformance):
    @pytest.fixture(scope="class")
    def load(self) -> Load:
        return cache(lambda dtype: load_rewards(["toy"], dtype=dtype)["toy"])


class TestHeldOut(ToyConformance):
    @pytest.fixture(scope="class")
    def load(self) -> Load:
        return cache(lambda dtype: load_rewards(["toy_held_out"], dtype=dtype)["toy_held_out"])


@pytest.mark.parametrize("name", ["toy", "toy_held_out"])
def test_images_of_the_model_are_judged_as_they_are(name: str) -> None:
    """Bit for bit what the network says: nothing is scaled."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE_FOLDER / "tokenizer", local_files_only=True)
    network = REWARD_NETWORKS[name](len(tokenizer), tokenizer.eos_token_id).eval()
    network.load_state_dict(
        {key: value.float() for key, value in load_file(WEIGHTS_FOLDER / f"reward_{name}.safetensors").items()}
    )
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = ["a big red star on a teal background", "", "a disc"]
    with torch.no_grad():
        expected = network(images, tokenize(tokenizer, prompts))
    assert torch.equal(load_rewards([name])[name].score(images, prompts), expected)
