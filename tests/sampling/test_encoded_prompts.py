"""Prompts are encoded once, and kept in the type that the networks compute in."""

import pytest
import torch

from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from tests.tiny import build_tiny_pipeline


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_what_was_encoded_in_the_type_of_the_networks(dtype: torch.dtype) -> None:
    model = StableDiffusion(build_tiny_pipeline(), "tiny", dtype=dtype)
    encoded, prompts = EncodedPrompts(model), ["a red fox", "a green hen"]
    for _ in range(2):
        found = encoded(prompts)
        assert found.dtype == torch.float32, "arithmetic on embeddings is in float32"
        one_by_one = [model.encode_prompts([prompt]) for prompt in prompts]
        assert torch.equal(found, torch.cat(one_by_one)), "the encoder computes in that type, so nothing is lost"
    assert {kept.dtype for kept in encoded._kept._kept.values()} == {dtype}


def test_the_latest_are_kept() -> None:
    model = StableDiffusion(build_tiny_pipeline(), "tiny")
    encoded = EncodedPrompts(model, capacity=2)
    for prompt in ("a", "b", "a", "c"):
        encoded([prompt])
    assert list(encoded._kept._kept) == ["a", "c"]
    with pytest.raises(ValueError, match="capacity"):
        EncodedPrompts(model, capacity=0)
