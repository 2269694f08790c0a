"""The analyses as commands, on a tiny model; and Figure 6 against diffusers."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from renege_ray.errors import UserError
from renege_ray.evaluation.analyses.command import main
from renege_ray.evaluation.analyses.pseudo_positive import draw_as_prompt
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from renege_ray.method.guidance import Guidance
from renege_ray.models.families.stable_diffusion import StableDiffusion

PICTURES = {
    "efficiency": "efficiency",
    "sampler-error": "sampler_error",
    "pseudo-positive": "grid",
    "distance": "distance",
}
OWN_FLAGS = {
    "efficiency": ["--num-probes", "2", "--images-per-probe", "1", "--lora-ranks", "1"],
    "sampler-error": ["--num-images", "3"],
    "pseudo-positive": ["--num-images", "2"],
    "distance": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a folder, and an embedding beside it."""
    from tests.tiny import build_tiny_pipeline

    folder = tmp_path_factory.mktemp("analyses")
    build_tiny_pipeline(unet={"sample_size": 4}).save_pretrained(folder / "model")
    learned = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0)).half()
    NegativeEmbedding({"negative_prompt_embeds": learned}, EmbeddingMetadata("")).save(folder / "n.safetensors")
    return folder


@pytest.mark.parametrize("name", OWN_FLAGS)
def test_each_leaves_its_table_and_its_picture(name: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    flags = [
        "--preset",
        "toy",
        "--model",
        str(folder / "model"),
        "--embedding",
        str(folder / "n.safetensors"),
        "--output-dir",
        str(out),
    ]
    main([name, *flags, *OWN_FLAGS[name], "--num-inference-steps", "2", "--seed", "3"], said.append)
    file = name.replace("-", "_")
    picture = out / "images" / f"{file}.png"
    assert said[-1] == str(picture) and min(Image.open(picture).size) > 100
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["job"], summary["status"]) == (name, "finished")
    assert all((out / path).is_file() for path in summary["artifacts"].values())
    assert summary["metrics"] and all(isinstance(value, float) for value in summary["metrics"].values())
    header, *rows = csv.reader((out / f"{file}.csv").open())
    assert rows and {len(row) for row in rows} == {len(header)}
    assert (out / "results.txt").read_text() in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "efficiency|sampler-error|pseudo-positive|distance"),
        (["efficency"], "there is no command 'efficency'; did you mean efficiency?"),
        (["distance"], "--embedding"),
        (["distance", "--embedding", "none.safetensors"], "--embedding: there is no file 'none.safetensors'"),
        (["pseudo-positive", "--embedding", "null"], "--embedding: there is no file 'null'"),
        (["sampler-error", "--embedding", "nul"], "--embedding: 'nul' is neither null, handwritten, nor"),
        (["sampler-error", "--num-images", "0"], "--num-images: '0' is not a whole number from 1 up"),
        (["sampler-error", "--prompts", "none.txt"], "--prompts"),
        (["efficiency", "--lora-ranks", "4,x"], "--lora-ranks: 'x' is not a whole number"),
        (["efficiency", "--guidance-scale", "1"], "sampling.guidance_scale"),
        (["efficiency", "--output-dir", "/dev/null/x"], "--output-dir"),
        (["efficiency", "--seed", "-1"], "--seed"),
    ],
)
def test_bad_input(flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded a model"))
    with pytest.raises(UserError) as caught:
        main(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_pseudo_positive_is_what_diffusers_draws(tiny_pipeline: Callable[..., StableDiffusionPipeline]) -> None:
    """Without guidance, and guided away from null."""
    pipeline = tiny_pipeline()
    model = StableDiffusion(pipeline, "tiny")
    n = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 4.0):
        expected = pipeline(
            prompt_embeds=n, negative_prompt_embeds=model.null_embedding(), guidance_scale=scale,
            num_inference_steps=3, generator=torch.Generator().manual_seed(7), height=16, width=16, output_type="pt",
        ).images  # fmt: skip
        made = draw_as_prompt(model, n, [6, 7], model.schedule(3), Guidance(scale))
        torch.testing.assert_close(made[1:], expected, atol=1e-4, rtol=0)
