"""What fits on cards that are not here."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from renege_ray.cluster.flops import ShapedModel
from renege_ray.cluster.plan import describe_evaluation_plan, describe_tuning_plan
from renege_ray.cluster.tiers import describe_tiers, reading_gib, weights_gib
from renege_ray.config.run import RunConfig, parse_config
from renege_ray.models.load import load_model
from tests.tiny import build_tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_pipeline().save_pretrained(folder)
    return folder


def config_of(folder: Path, *rewards: str, dtype: str = "auto") -> RunConfig:
    weights = {"train": dict.fromkeys(rewards or ("toy",), 1.0)}
    return parse_config({"model": {"id": str(folder), "dtype": dtype}, "rewards": weights})


def test_the_weights_are_those_of_the_loaded_model(folder: Path) -> None:
    config = config_of(folder)
    shaped = ShapedModel.read(config)
    pipeline = load_model(config.model, "cpu").pipeline  # type: ignore[attr-defined]
    networks, encoder = (pipeline.unet, pipeline.vae), pipeline.text_encoder
    assert shaped.numbers() == sum(weight.numel() for network in networks for weight in network.parameters())
    assert shaped.encoder_numbers() == sum(weight.numel() for weight in encoder.parameters())
    alone = weights_gib(config, shaped, torch.bfloat16)
    assert weights_gib(config_of(folder, "hpsv2", "clip"), shaped, torch.bfloat16) == pytest.approx(alone + 1.8)
    assert weights_gib(config, shaped, torch.float32) == 2 * alone > 0


def test_a_text_encoder_counts_while_it_reads_and_not_after(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, "hpsv2", "clip")
    shaped = ShapedModel.read(config)
    assert reading_gib(config, shaped, torch.bfloat16) == 1.3, "HPSv2's tower is larger than the tiny encoder"
    monkeypatch.setattr(ShapedModel, "encoder_numbers", lambda self: 4_762_310_656)  # T5-XXL's
    assert reading_gib(config, shaped, torch.bfloat16) == pytest.approx(8.87, abs=0.01)
    line = describe_tiers(config, shaped)
    assert "1.8 GiB of weights" in line and "8.9 GiB of a text encoder" in line
    assert "16gb none" not in line, "1.8 + 8.9 GiB are less than 13.4"
    monkeypatch.setattr(ShapedModel, "encoder_numbers", lambda self: 2 * 4_762_310_656)
    assert "16gb none, 24gb" in describe_tiers(config, shaped) and "24gb none" not in describe_tiers(config, shaped)


def test_what_stays_and_what_comes_for_prompts_is_what_tensors_are(folder: Path) -> None:
    """Counted on the meta device, which stands for an accelerator."""
    config = config_of(folder)
    shaped = ShapedModel.read(config)
    model: Any = load_model(config.model, "meta")
    parts = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]

    def counted() -> int:
        return sum(weight.numel() for part in parts for weight in part.parameters() if weight.is_meta)

    assert counted() == shaped.numbers()
    with model.encoding():
        assert counted() == shaped.numbers() + shaped.encoder_numbers()
    assert counted() == shaped.numbers()


def test_a_model_that_does_not_fit(folder: Path) -> None:
    config = parse_config({"model": {"id": str(folder), "size": [1024, 1024]}})  # latents of 512x512
    assert "16gb none, 24gb none, 80gb none;" in describe_tiers(config, ShapedModel.read(config))


def test_a_line_for_all_tiers_where_gradients_are_taken(folder: Path) -> None:
    config = config_of(folder, "hpsv2")
    line = describe_tiers(config, ShapedModel.read(config))
    found = {name: (int(n), float(gib)) for name, n, gib in re.findall(r"(\d+gb) (\d+)[ a-z]*\(([\d.]+) GiB\)", line)}
    assert list(found) == ["16gb", "24gb", "80gb"] and "1.2 GiB of weights" in line
    for name, (samples, gib) in found.items():
        assert samples >= 4 and 2.4 < gib < int(name[:-2]) * 1e9 / 2**30 - 1.5 + 0.05
    assert line in describe_tuning_plan(config, 3, ())
    assert "samples at once" not in describe_evaluation_plan(config, 3, 3, ())
