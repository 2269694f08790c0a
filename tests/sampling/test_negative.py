"""What a user's words stand for, and the embedding that it is once a model is there."""

from pathlib import Path

import pytest
import torch

from renege_ray.config.run import parse_config
from renege_ray.errors import UserError
from renege_ray.models.families.stable_diffusion_xl import StableDiffusionXL
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.negative import NULL, Negative, kind_of, read_negative, read_start
from tests.tiny import build_tiny_sdxl


def test_kinds_and_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("null", "run", "handwritten"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    config = parse_config({"prompts": {"handwritten": ["ugly", "dark"]}})
    assert kind_of("null") == ("null", "") and read_start("null", "init", config) == NULL
    assert kind_of("handwritten") == ("handwritten", "")
    assert read_start("handwritten", "init", config) == Negative("ugly")
    for words in ("file", "none.safetensors", "none.PT"):
        assert kind_of(words) == ("global", words)
        with pytest.raises(UserError, match=f"^init: '{words}': negative embedding"):
            read_start(words, "init", config)
    long = "low quality, " * 400
    assert kind_of("run") == ("prompt", "run") and kind_of(long) == ("text", long)
    for words in ("run", "ugly, dark"):
        with pytest.raises(UserError, match=f"^init: '{words}' is neither null, handwritten, nor an existing file"):
            read_start(words, "init", config)
    assert read_negative("text", "null", config, pytest.fail) == Negative("null")
    assert read_negative("handwritten", "dim", config, pytest.fail) == Negative("dim")


def test_learning_from_null_starts_at_the_empty_text() -> None:
    """As SDXL's pipeline takes zeros, which all tokens would leave alike."""
    model = StableDiffusionXL(build_tiny_sdxl(), "tiny")
    encoded = EncodedPrompts(model)
    empty = model.encode_prompts([""])
    assert NULL.packed(encoded).eq(0).all() and torch.equal(NULL.starting_point(model, encoded), empty)
    assert torch.equal(Negative("ugly").packed(encoded), model.encode_prompts(["ugly"]))
    own = Negative(embedding=torch.randn_like(empty))
    assert own.packed(encoded) is own.embedding and own.starting_point(model, encoded) is own.embedding
