"""Without --preset, a model brings the settings of its family along, and never the embedded model's rewards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from renege_ray.__main__ import main
from renege_ray.config.cli import from_args
from renege_ray.config.preset_choice import preset_for
from renege_ray.config.run import load_preset, preset_names
from renege_ray.errors import UserError
from renege_ray.evaluation.generate import parse_request
from renege_ray.models.toy.command import export

JOBS = ("train_global", "tune_prompts", "sweep", "evaluate")


def model(folder: Path, kind: str, width: int | None = None) -> Path:
    """The small files of a model."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    if width is not None:
        (folder / "unet").mkdir()
        (folder / "unet/config.json").write_text(json.dumps({"cross_attention_dim": width, "sample_size": 64}))
    return folder


FAMILIES = [
    ("StableDiffusionPipeline", 768, "sd15"),
    ("StableDiffusionPipeline", 1024, "sd21"),
    ("StableDiffusionControlNetPipeline", 768, "sd15"),
    ("StableDiffusionXLPipeline", 2048, "sdxl"),
    ("PixArtAlphaPipeline", None, "pixart"),
    ("StableDiffusion3Pipeline", None, "sd35-medium"),
    ("ZImagePipeline", None, "z-image"),
    ("QwenImagePipeline", None, "qwen-image"),
    ("ChromaPipeline", None, "chroma"),
    ("Flux2KleinPipeline", None, "flux2-klein"),
    ("SanaPipeline", None, "sana"),
    ("Lumina2Pipeline", None, "lumina2"),
    ("TextToVideoSDPipeline", 1024, "sd21"),
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("kind", "width", "preset"), FAMILIES)
@pytest.mark.parametrize("job", JOBS)
def test_the_preset_of_a_models_family(
    job: str, kind: str, width: int | None, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model(Path("mine"), kind, width)
    config = from_args(["--model", "mine"], job).config
    expected = load_preset(preset)
    assert (config.optim, config.rewards) == (
        expected.optim.model_copy(update={"gradients_per_rollout": config.optim.gradients_per_rollout}),
        expected.rewards,
    )
    assert capsys.readouterr().out.startswith(f"preset {preset} for mine: it is a {kind}")
    generated = parse_request(["--prompt", "a fox", "--model", "mine"]).config
    assert generated.sampling.guidance_scale == expected.sampling.guidance_scale
    assert capsys.readouterr().out.startswith(f"preset {preset} for mine")


def test_a_model_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Path("hub/models--acme--tiny/snapshots/0123456789abcdef0123456789abcdef01234567")
    model(snapshot, "StableDiffusionXLPipeline")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    assert preset_for("acme/tiny", download=False)[0] == "sdxl"


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"toy"}))
def test_the_presets_own_models(name: str) -> None:
    assert preset_for(load_preset(name).model.id, download=False)[0] == name


@pytest.mark.parametrize("more", [["--model", "toy2"], []])
def test_the_embedded_models_say_nothing(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert from_args(more, "train_global").config.rewards.train == {"toy": 1.0}
    assert not capsys.readouterr().out


def test_an_exported_embedded_model_is_one() -> None:
    export(Path("exported"))
    config = from_args(["--model", "exported"], "train_global").config
    assert config.optim == load_preset("toy").optim
    shutil.rmtree("exported")


def test_a_preset_that_is_given_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    model(Path("mine"), "StableDiffusionPipeline", 1024)
    assert from_args(["--preset", "sdxl", "--model", "mine"], "evaluate").config.sampling == (
        from_args(["--preset", "sdxl"], "evaluate").config.sampling
    )
    assert not capsys.readouterr().out


def test_help_shows_the_values_of_the_models_preset(capsys: pytest.CaptureFixture[str]) -> None:
    model(Path("mine"), "StableDiffusionPipeline", 768)
    with pytest.raises(SystemExit):
        main(["train-global", "--model", "mine", "--help"])
    assert "(default: 0.005)" in capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--preset", "toy"], "rewards.train"),
        (["--preset", "mine.yaml"], "rewards.train"),
        (["--rewards.train", "{hpsv2: 1, toy: 1}"], "rewards.train"),
        (["--rewards.held-out", "toy_held_out"], "rewards.held_out"),
        (["--rewards.judges", "judge"], "rewards.judges"),
    ],
)
def test_the_toys_rewards_judge_no_other_model(job: str, flags: list[str], field: str) -> None:
    model(Path("mine"), "StableDiffusionPipeline", 768)
    Path("mine.yaml").write_text("optim: {steps: 5}\n")
    for name in ("mine", "acme/model"):
        with pytest.raises(UserError, match=rf"^{field}: 'toy|^{field}: 'judge") as raised:
            from_args([*flags, "--model", name], job)
        assert f"{name} is none of them" in str(raised.value) and "hpsv2" in str(raised.value)


@pytest.mark.parametrize(
    "flags", [["--rewards", "toy", "--preset", "sd15"], ["--method", "null", "--method", "model=mine:null"]]
)
def test_an_evaluation_has_further_ways_to_name_them(flags: list[str]) -> None:
    model(Path("mine"), "StableDiffusionPipeline", 768)
    with pytest.raises(UserError, match="knows the pictures of the embedded models only"):
        from_args(flags, "evaluate")


def test_real_rewards_for_the_toy_are_fine() -> None:
    found: Any = from_args(["--rewards.train", "{hpsv2: 1}", "--rewards.held-out", "[]"], "train_global")
    assert found.config.rewards.train == {"hpsv2": 1.0}
