"""What a dry run says of a model, by its configuration files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renege_ray.cluster.cost import evaluation_cost, gradient_cost, validation_images
from renege_ray.cluster.plan import describe_plan
from renege_ray.config.run import RunConfig, parse_config
from renege_ray.errors import UserError
from tests.tiny import (
    build_tiny_lumina2,
    build_tiny_pipeline,
    build_tiny_pixart,
    build_tiny_sana,
    build_tiny_sdxl,
    build_tiny_video,
)

MODELS = {
    "StableDiffusion, negative of 12 tokens x 16": build_tiny_pipeline,
    "StableDiffusionXL, negative of 12 tokens x 40 + pooled 20": build_tiny_sdxl,
    "PixArtAlpha, negative of 120 tokens x 16 + attention mask": build_tiny_pixart,
    "Sana, negative of 300 tokens x 24 + attention mask": build_tiny_sana,
    "Lumina2, negative of 64 tokens x 24 + attention mask": build_tiny_lumina2,
    "TextToVideo, negative of 12 tokens x 24": build_tiny_video,
}


def config_of(folder: Path) -> RunConfig:
    return parse_config({"model": {"id": str(folder)}, "optim": {"steps": 10}})


@pytest.mark.parametrize("described", MODELS)
def test_the_family_and_its_denoiser_are_known_without_weights(described: str, tmp_path: Path) -> None:
    build: Callable[[], Any] = MODELS[described]
    build().save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    config = config_of(tmp_path)
    line = next(line for line in describe_plan(config, ()).splitlines() if "PFLOP" in line)
    assert line.startswith(described)
    passes = gradient_cost(config) + evaluation_cost(config, validation_images(config) + 3 * config.test.num_pairs)
    per_pass = float(line.split("about ")[1].split()[0]) * 1e15 / passes.denoiser_forward
    assert 1e5 < per_pass < 1e9, "a tiny model, on one image or 16 frames"


def test_a_folder_without_the_denoisers_configuration(tmp_path: Path) -> None:
    build_tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"its configuration cannot be read.*unet/config\.json"):
        describe_plan(config_of(tmp_path), ())
