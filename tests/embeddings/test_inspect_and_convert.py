"""The commands `inspect` and `convert`, from their flags to the files."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from renege_ray.embeddings.command import main
from renege_ray.errors import UserError
from renege_ray.method.embedding import POOLED_EMBEDS, PROMPT_EMBEDS, EmbeddingMetadata, NegativeEmbedding
from renege_ray.models.text_encoder import hash_text_encoder
from tests.shared_data import shared_file


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.bin"
    torch.save(random(1, 12, 16), path)
    return path


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def test_inspect_tells_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = torch.zeros(1, 77, 768)
    n[0, 0, 0], n[0, 5, :4] = 7.0, 1.5
    path = tmp_path / "n.safetensors"
    metadata = EmbeddingMetadata(
        "0123456789abcdef", "CLIP", "owner/model", 7.5, "hpsv2", "parti", 400, "fedcba", "0.1.0"
    )
    NegativeEmbedding({PROMPT_EMBEDS: n.half()}, metadata).save(path)
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: {path.stat().st_size} bytes, SHA-256 ")
    assert lines[1] == "negative_prompt_embeds: (1, 77, 768) float16"
    assert "mean 0.1299, from 0 (token 1) to 7 (token 0), first 7; values 0 to 7" in lines[2]
    assert "Stable Diffusion 1.x" in lines[3]
    assert lines[4:] == [
        "text_encoder_hash: 0123456789abcdef", "text_encoder: CLIP", "base_model: owner/model", "guidance_scale: 7.5",
        "reward: hpsv2", "prompts: parti", "steps: 400", "config_fingerprint: fedcba", "package_version: 0.1.0",
    ]  # fmt: skip


def test_all_tensors_are_inspected_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {PROMPT_EMBEDS: random(1, 77, 2048), POOLED_EMBEDS: random(1, 1280)}
    source, target = tmp_path / "n.safetensors", tmp_path / "half.safetensors"
    NegativeEmbedding(tensors, EmbeddingMetadata("")).save(source)
    main(["inspect", str(source)])
    out = capsys.readouterr().out
    assert "negative_pooled_prompt_embeds: (1, 1280) float32" in out and "Stable Diffusion XL" in out
    main(["convert", str(source), str(target), "--dtype", "float16"])
    assert {name: tensor.dtype for name, tensor in load_file(target).items()} == dict.fromkeys(tensors, torch.float16)
    NegativeEmbedding({**tensors, POOLED_EMBEDS: torch.full((1, 8), 7e4)}, EmbeddingMetadata("")).save(source)
    with pytest.raises(UserError, match=r"values up to 7e\+04 do not fit float16"):
        main(["convert", str(source), str(target), "--dtype", "float16", "--force"])


def test_inspect_a_foreign_file(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(foreign), str(foreign)])
    out = capsys.readouterr().out
    assert out.count("negative_prompt_embeds: (1, 12, 16) float32") == 2
    assert "no model family that is known here" in out and "metadata: none" in out


@pytest.mark.parametrize("name", ["sd1.5_reneg_emb.bin", "sd1.4_reneg_emb.bin"])
def test_the_released_embeddings(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = shared_file(f"reneg_embeddings/{name}"), tmp_path / "n.safetensors"
    main(["inspect", str(source)])
    assert "(1, 77, 768) float32" in capsys.readouterr().out
    main(["convert", str(source), str(target), "--base-model", "owner/sd"])
    assert torch.equal(load_file(target)["negative_prompt_embeds"], torch.load(source, weights_only=True))
    assert header(target)["base_model"] == "owner/sd"


def test_convert_keeps_what_it_is_not_told_to_change(foreign: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    main(["convert", str(foreign), str(first), "--base-model", "owner/a", "--steps", "7", "--guidance-scale", "7.5"])
    main(["convert", str(first), str(second), "--reward", "hpsv2", "--prompts", "parti"])
    known = NegativeEmbedding.load(second)
    assert known.metadata == EmbeddingMetadata(
        "", base_model="owner/a", guidance_scale=7.5, reward="hpsv2", prompts="parti", steps=7
    )
    assert torch.equal(known.prompt_embeds, random(1, 12, 16))


def test_convert_to_another_type(foreign: Path, tmp_path: Path) -> None:
    half, single = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    main(["convert", str(foreign), str(half), "--dtype", "float16"])
    main(["convert", str(half), str(single), "--dtype", "float32"])
    assert load_file(half)["negative_prompt_embeds"].dtype == torch.float16
    assert torch.equal(load_file(single)["negative_prompt_embeds"], random(1, 12, 16).half().float())
    torch.save(torch.full((1, 2, 3), 7e4), foreign)
    with pytest.raises(UserError, match=r"--dtype: values up to 7e\+04 do not fit float16"):
        main(["convert", str(foreign), str(tmp_path / "c.safetensors"), "--dtype", "float16"])
    assert not (tmp_path / "c.safetensors").exists()


def test_convert_stores_whose_embedding_it_is(
    foreign: Path, tmp_path: Path, tiny_pipeline: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    target = tmp_path / "n.safetensors"
    main(["convert", str(foreign), str(target), "--text-encoder", str(tmp_path / "model")])
    assert header(target)["text_encoder_hash"] == hash_text_encoder(pipeline.text_encoder)
    assert "note" not in capsys.readouterr().out
    torch.save(random(1, 11, 16), foreign)
    with pytest.raises(UserError, match=r"\(11, 16\).*\(12, 16\)"):
        main(["convert", str(foreign), str(tmp_path / "m.safetensors"), "--text-encoder", str(tmp_path / "model")])
    # A name says nothing that can be checked, and takes nothing away.
    main(["convert", str(target), str(tmp_path / "o.safetensors"), "--text-encoder", "owner/clip"])
    assert header(tmp_path / "o.safetensors")["text_encoder"] == "owner/clip"
    assert header(tmp_path / "o.safetensors")["text_encoder_hash"] == header(target)["text_encoder_hash"]


def test_convert_replaces_nothing_unasked(foreign: Path, tmp_path: Path) -> None:
    target = tmp_path / "n.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"n\.safetensors exists; .* --force"):
        main(["convert", str(foreign), str(target)])
    assert target.read_bytes() == b"precious"
    main(["convert", str(foreign), str(target), "--force"])
    assert NegativeEmbedding.load(target).prompt_embeds.shape == (1, 12, 16)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "inspect|convert|export"),
        (["inspect"], "FILE"),
        (["inspect", "none.bin"], r"none\.bin: no such file"),
        (["convert", "none.bin", "n.safetensors"], r"none\.bin: no such file"),
        (["convert", "foreign.bin", "n.bin"], r"must end in \.safetensors"),
        (["convert", "foreign.bin", "n.safetensors", "--dtype", "int8"], "--dtype: invalid choice"),
        (["convert", "foreign.bin", "n.safetensors", "--guidance-scale", "nan"], "not a number above 0"),
        (["convert", "foreign.bin", "n.safetensors", "--text-encoder", "./none"], r"there is no folder \./none"),
        (["convert", "foreign.bin", "none/n.safetensors"], "cannot write"),
        (["inspect", "inversion.safetensors"], "holds 2 tensors"),
    ],
)
def test_bad_input(
    argv: list[str], message: str, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"clip_l": torch.zeros(4, 768), "clip_g": torch.zeros(4, 1280)}, "inversion.safetensors")
    with pytest.raises(UserError, match=message) as raised:
        main(argv)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "n.safetensors").exists()


@pytest.mark.slow
def test_from_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "renege_ray", "embedding", "inspect", "none.bin"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_help_says_what_can_be_used_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "A1111" in out and "emb_params" in out and "ComfyUI" in out
