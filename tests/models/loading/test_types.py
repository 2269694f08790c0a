"""Weights are read in the type that they are kept in, and the model is what it would be otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from renege_ray.config.run import ModelConfig
from renege_ray.models.load import load_model
from renege_ray.models.loading import hub
from renege_ray.models.loading.hub import load_pipeline, types_of
from tests.tiny import build_tiny_pipeline

TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def dtypes_of(network: nn.Module) -> set[torch.dtype]:
    return {weight.dtype for weight in network.parameters()}


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    pipeline = build_tiny_pipeline()
    pipeline.text_encoder.to(TYPES[getattr(request, "param", "f32")])
    pipeline.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("folder", ["f16", "bf16", "f32"], indirect=True)
def test_what_is_read_is_never_larger_than_what_is_kept(folder: Path, request: pytest.FixtureRequest) -> None:
    config = ModelConfig(id=str(folder), dtype="bfloat16")
    pipeline, _ = load_pipeline(config, dtype=torch.bfloat16)
    assert dtypes_of(pipeline.unet) == dtypes_of(pipeline.vae) == {torch.bfloat16}
    stored = TYPES[request.node.callspec.params["folder"]]
    assert dtypes_of(pipeline.text_encoder) == {stored}, "the hash is that of its file's numbers"
    whole, _ = load_pipeline(config)
    assert dtypes_of(whole.unet) == dtypes_of(whole.text_encoder) == {torch.float32}


@pytest.mark.parametrize("folder", ["f16", "bf16", "f32"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_model_is_the_same_as_by_way_of_float32(folder: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(id=str(folder), dtype=dtype)
    found: Any = load_model(config, "cpu")
    monkeypatch.setattr(hub, "types_of", lambda *given: {})
    expected: Any = load_model(config, "cpu")
    assert found.text_encoder_hash == expected.text_encoder_hash
    for part in ("unet", "vae", "text_encoder"):
        pairs = zip(
            getattr(found.pipeline, part).parameters(), getattr(expected.pipeline, part).parameters(), strict=True
        )
        assert all(mine.dtype == other.dtype and torch.equal(mine, other) for mine, other in pairs), part


def test_a_decoder_that_overflows_is_read_in_float32(folder: Path) -> None:
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"force_upcast": True}))
    types = types_of(folder, str(folder), torch.float16)
    assert types["vae"] == torch.float32 and types["unet"] == torch.float16
    assert types_of(folder, str(folder), torch.bfloat16)["vae"] == torch.bfloat16
