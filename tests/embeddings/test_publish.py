"""`export`: the folder, its card as the Hub reads it, and the card's own code."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from PIL import Image

from renege_ray.config.run import parse_config, write_config
from renege_ray.embeddings.command import main
from renege_ray.embeddings.negative_embedding import NegativeEmbedding
from renege_ray.errors import UserError
from renege_ray.method.embedding import ATTENTION_MASK, PROMPT_EMBEDS, EmbeddingMetadata
from renege_ray.models.text_encoder import layout_of
from tests.tiny import build_tiny_pixart, build_tiny_sdxl

METADATA = EmbeddingMetadata(
    "0123456789abcdef", "CLIPTextModel", "owner/model", 3.0, "hpsv2", "parti", 40, "fedcba", "0.1"
)
N = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(0)).half()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run leaves in its output folder."""
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    config = {
        "sampling": {"num_inference_steps": 2, "guidance_scale": 3.0, "gradient_steps": [0, 1]},
        "prompts": {"held_out": "/some/dir/mine.csv:text"},
        "test": {"num_pairs": 12},
    }
    write_config(parse_config(config), folder)
    NegativeEmbedding({PROMPT_EMBEDS: N}, METADATA).save(folder / "negative_embedding.safetensors")
    Image.new("RGB", (8, 8)).save(folder / "images" / "before_after.png")
    (folder / "results.txt").write_text("a table")
    summary = {
        "job": "train_global",
        "status": "finished",
        "artifacts": {
            "embedding": "negative_embedding.safetensors",
            "before_after": "images/before_after.png",
            "table": "results.txt",
        },
        "metrics": {
            "eval/null/hpsv2/mean": 0.25, "eval/handwritten/hpsv2/mean": 0.26, "eval/global/hpsv2/mean": 0.31,
            "eval/global/saturation/mean": 0.5, "eval/global/win_rate_vs_null/hpsv2": 1.0,
            "eval/global/win_rate_vs_handwritten/hpsv2": 0.99, "perf/train_seconds": 3.0,
        },
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def export(*argv: object) -> None:
    assert main(["export", *map(str, argv)]) == 0


def test_pictures_of_one_name_in_two_folders_are_both_published(run: Path, tmp_path: Path) -> None:
    (run / "more").mkdir()
    Image.new("RGB", (8, 8), "red").save(run / "more" / "Before_after.png")
    summary = json.loads((run / "summary.json").read_text())
    summary["artifacts"] |= {"more": "more/Before_after.png", "again": "images/before_after.png"}
    (run / "summary.json").write_text(json.dumps(summary))
    export(run, "--hub", tmp_path / "hub", "--license", "openrail++")
    first, second = sorted(file for file in files_in(tmp_path / "hub") if file.endswith(".png"))
    assert first.startswith("images/Before_after-") and second.startswith("images/before_after-")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert f"({first})" in card and f"({second})" in card


def test_the_folder_and_its_card(run: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    export(run, "--hub", hub, "--license", "openrail++")
    assert files_in(hub) == {"README.md", "negative_embedding.safetensors", "images/before_after.png"}
    assert torch.equal(NegativeEmbedding.load(hub / "negative_embedding.safetensors").prompt_embeds, N)
    assert NegativeEmbedding.load(hub / "negative_embedding.safetensors").metadata == METADATA
    data = metadata_load(hub / "README.md")
    assert data is not None
    assert data["base_model"] == "owner/model" and data["license"] == "openrail++"
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "text-to-image"
    assert "negative-embedding" in data["tags"]
    card = ModelCard.load(hub / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("hpsv2", 0.31)
    assert "![before after](images/before_after.png)" in card.text
    assert "| this embedding | 0.3100 |" in card.text and "| wins over handwritten | 0.99 |" in card.text
    assert "12 pairs" in card.text and "mine.csv" in card.text
    assert "saturation" not in card.content and "/some/dir" not in card.content and str(tmp_path) not in card.content


def test_the_base_models_terms_are_the_default(run: Path, tmp_path: Path) -> None:
    export(run, "--hub", tmp_path / "hub", "--base-model", "other/base")
    data = metadata_load(tmp_path / "hub" / "README.md")
    assert data is not None
    assert data["base_model"] == "other/base"
    assert (data["license"], data["license_link"]) == ("other", "https://huggingface.co/other/base")
    assert "The terms of the base model, `other/base`, apply." in (tmp_path / "hub" / "README.md").read_text()


def test_a_file_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = tmp_path / "hub"
    file = run / "negative_embedding.safetensors"
    export(file, "--hub", hub, "--base-model", "toy")
    assert files_in(hub) == {"README.md", "negative_embedding.safetensors"}
    assert "note: 'toy' is no model of the Hub" in capsys.readouterr().out
    card = ModelCard.load(hub / "README.md")
    assert card.data.eval_results is None and "## Results" not in card.text
    assert "`renege-ray toy export toy` writes it" in card.text
    NegativeEmbedding({PROMPT_EMBEDS: N}, EmbeddingMetadata("")).save(file)
    with pytest.raises(UserError, match="does not say which model it is for; give --base-model"):
        export(file, "--hub", tmp_path / "other")


def snippet_of(card: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def expected_image(pipeline: StableDiffusionPipeline) -> Image.Image:
    return pipeline(
        "a photograph of a fox in the snow",
        negative_prompt_embeds=N.float(),
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
    ).images[0]


def test_the_cards_code_makes_the_picture(
    run: Path, tmp_path: Path, tiny_pipeline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_pipeline()
    hub = tmp_path / "hub"
    pipeline.save_pretrained(hub / "tiny")
    export(run, "--hub", hub, "--base-model", "tiny", "--force")
    monkeypatch.chdir(hub)
    code = snippet_of(hub / "README.md")
    assert "hf_hub_download" not in code
    torch.manual_seed(7)  # the pipeline draws its noise from the global generator
    exec(compile(code, "README.md", "exec"), {})
    assert Image.open("image.png").tobytes() == expected_image(pipeline).tobytes()


@pytest.mark.parametrize("build", [build_tiny_sdxl, build_tiny_pixart])
def test_the_cards_code_for_embeddings_of_several_tensors(
    build: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, file = tmp_path / "hub", tmp_path / "n.safetensors"
    build().save_pretrained(hub / "tiny")
    pipeline = DiffusionPipeline.from_pretrained(hub / "tiny")  # in eval mode: T5 has dropout
    shapes = layout_of(pipeline).shapes
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if ATTENTION_MASK in tensors:
        tensors[ATTENTION_MASK] = torch.ones(shapes[ATTENTION_MASK], dtype=torch.int64)
    embedding = NegativeEmbedding(tensors, EmbeddingMetadata("", guidance_scale=3.0))
    embedding.save(file)
    export(file, "--hub", hub, "--base-model", "tiny", "--force")
    monkeypatch.chdir(hub)
    code, prompt = snippet_of(hub / "README.md"), "a photograph of a fox in the snow"
    arguments: dict[str, Any] = embedding.for_pipeline(pipeline, prompt)
    if ATTENTION_MASK in tensors:  # PixArt's pipeline bins the sizes of real models alone
        arguments["use_resolution_binning"] = False
        code = code.replace("negative_prompt=None", "negative_prompt=None, use_resolution_binning=False")
    else:
        arguments["prompt"] = prompt
    code = code.replace("    **{name", "    generator=torch.Generator().manual_seed(7),\n    **{name")
    exec(compile(code, "README.md", "exec"), {})
    expected = pipeline(**arguments, guidance_scale=3.0, generator=torch.Generator().manual_seed(7)).images[0]
    assert Image.open("image.png").tobytes() == expected.tobytes()


def test_the_published_cards_code_takes_the_file_from_the_hub(
    run: Path, tmp_path: Path, tiny_pipeline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the repository in the layout that huggingface_hub documents for its cache."""
    uploads = recorded_uploads(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "tiny")
    repository = tmp_path / "cache" / "models--me--mine"
    snapshot = repository / "snapshots" / ("0" * 40)
    export(run, "--hub", snapshot, "--base-model", "tiny", "--push", "me/mine")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    exec(compile(snippet_of(snapshot / "README.md"), "README.md", "exec"), {})
    assert Image.open("image.png").tobytes() == expected_image(pipeline).tobytes()
    assert uploads == [
        ("me/mine", snapshot, ["negative_embedding.safetensors", "README.md", "images/before_after.png"])
    ]


def recorded_uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, list[str]]]:
    """In place of the Hub: what would be uploaded."""
    uploads: list[tuple[str, Path, list[str]]] = []

    def create_repo(self: object, repo_id: str, **options: Any) -> str:
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self: object, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **rest: Any) -> None:
        uploads.append((repo_id, folder_path, allow_patterns))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return uploads


def test_a_dry_run_shows_all_and_does_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uploads = recorded_uploads(monkeypatch)
    export(run, "--hub", tmp_path / "hub", "--push", "me/mine", "--dry-run")
    out = capsys.readouterr().out
    assert "images/before_after.png" in out and "base_model: owner/model" in out and "me/mine of the Hub" in out
    assert not (tmp_path / "hub").exists() and not uploads


def test_a_folder_that_is_not_empty(run: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(run, "--hub", hub)
    assert files_in(hub) == {"precious.txt"}
    export(run, "--hub", hub, "--force")
    assert "precious.txt" in files_in(hub) and "README.md" in files_in(hub)
    with pytest.raises(UserError, match="not an empty folder"):
        export(run, "--hub", hub / "precious.txt")


def test_a_hub_that_cannot_be_reached(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *args: object, **options: object) -> None:
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"--push: me/mine cannot be written on the Hub \(no route\)") as raised:
        export(run, "--hub", tmp_path / "hub", "--push", "me/mine")
    assert "\n" not in str(raised.value)
    assert "README.md" in files_in(tmp_path / "hub")


def test_what_is_no_finished_run(run: Path, tmp_path: Path) -> None:
    for name, message in [
        ("summary.json", "has no summary.json; name the embedding file itself"),
        ("negative_embedding.safetensors", "has no negative_embedding.safetensors; name the output folder of a run"),
    ]:
        (run / name).unlink()
        with pytest.raises(UserError, match=re.escape(message)):
            export(run, "--hub", tmp_path / "hub")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--push", "mine"], "--push: 'mine' is no repository's name"),
        (["--license", "My License"], "--license: 'My License' is no identifier"),
    ],
)
def test_bad_flags(argv: list[str], message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(run, "--hub", tmp_path / "hub", *argv)
    assert not (tmp_path / "hub").exists()
