import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from renege_ray.errors import UserError
from renege_ray.method import EmbeddingMetadata, NegativeEmbedding
from tests.shared_data import shared_file

FULL = EmbeddingMetadata(
    text_encoder_hash="0123456789abcdef",
    text_encoder="CLIPTextModel (2 layers of width 6)",
    base_model="toy",
    guidance_scale=0.1 + 0.2,
    reward="toy + 0.5 other",
    prompts="toy é",
    steps=150,
    config_fingerprint="fedcba",
    package_version="0.1.0",
)


def alone(n: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"negative_prompt_embeds": n}


def alone_of(length: int, width: int) -> dict[str, tuple[int, ...]]:
    return {"negative_prompt_embeds": (1, length, width)}


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("metadata", [FULL, EmbeddingMetadata(text_encoder_hash="ab")])
def test_round_trip(tmp_path: Path, dtype: torch.dtype, metadata: EmbeddingMetadata) -> None:
    path = tmp_path / "n.safetensors"
    saved = NegativeEmbedding(alone(tensor(1, 4, 6, dtype=dtype)), metadata)
    saved.save(path)
    loaded = NegativeEmbedding.load(path)
    assert loaded.metadata == metadata
    assert loaded.prompt_embeds.dtype == dtype and torch.equal(loaded.prompt_embeds, saved.prompt_embeds)
    assert torch.equal(load_file(path)["negative_prompt_embeds"], saved.prompt_embeds)


def test_what_is_saved_is_detached_and_contiguous(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    n = tensor(1, 6, 4).transpose(1, 2).requires_grad_()
    NegativeEmbedding(alone(n), FULL).save(path)
    assert torch.equal(NegativeEmbedding.load(path).prompt_embeds, n.detach())


def test_a_failed_save_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.safetensors"
    old, new = NegativeEmbedding(alone(tensor(1, 4, 6)), FULL), NegativeEmbedding(alone(tensor(1, 4, 6) + 1), FULL)
    old.save(path)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match="No space left"):
            new.save(path)
    assert torch.equal(NegativeEmbedding.load(path).prompt_embeds, old.prompt_embeds)
    assert [entry.name for entry in tmp_path.iterdir()] == ["n.safetensors"]
    new.save(path)
    assert torch.equal(NegativeEmbedding.load(path).prompt_embeds, new.prompt_embeds)
    assert [entry.name for entry in tmp_path.iterdir()] == ["n.safetensors"]


def test_where_it_cannot_be_saved(tmp_path: Path) -> None:
    embedding = NegativeEmbedding(alone(tensor(1, 4, 6)), FULL)
    with pytest.raises(UserError, match=r"\.safetensors"):
        embedding.save(tmp_path / "n.bin")
    with pytest.raises(UserError, match="cannot write"):
        embedding.save(tmp_path / "no" / "such" / "n.safetensors")


@pytest.mark.parametrize("content", ["tensor", "matrix", "dict", "parameter"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_files_of_other_programs(tmp_path: Path, content: str, suffix: str) -> None:
    n = tensor(1, 4, 6)
    objects: dict[str, Any] = {"tensor": n, "matrix": n[0], "dict": {"emb": n}, "parameter": torch.nn.Parameter(n)}
    torch.save(objects[content], tmp_path / f"n{suffix}")
    loaded = NegativeEmbedding.load(tmp_path / f"n{suffix}")
    assert torch.equal(loaded.prompt_embeds, n) and not loaded.prompt_embeds.requires_grad
    assert loaded.metadata == EmbeddingMetadata(text_encoder_hash="")


def test_a_file_of_several_tensors_by_diffusers_names(tmp_path: Path) -> None:
    tensors = {"negative_prompt_embeds": tensor(1, 4, 6), "negative_prompt_attention_mask": torch.ones(1, 4).long()}
    torch.save(tensors, tmp_path / "n.bin")
    loaded = NegativeEmbedding.load(tmp_path / "n.bin").tensors
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    torch.save(tensors | {"step": torch.ones(1)}, tmp_path / "n.bin")
    with pytest.raises(UserError, match="more than a tensor"):
        NegativeEmbedding.load(tmp_path / "n.bin")


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    save_file({"anything": tensor(4, 6)}, tmp_path / "n.safetensors", {"format": "pt"})
    loaded = NegativeEmbedding.load(tmp_path / "n.safetensors")
    assert loaded.prompt_embeds.shape == (1, 4, 6) and loaded.metadata.text_encoder_hash == ""


def test_the_released_embedding() -> None:
    embedding = NegativeEmbedding.load(shared_file("reneg_embeddings/sd1.5_reneg_emb.bin"))
    assert embedding.prompt_embeds.shape == (1, 77, 768)
    embedding.check_fits({"negative_prompt_embeds": (1, 77, 768)}, "0123456789abcdef", "CLIP ViT-L/14")


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("how", ["torch.save", "in a dict", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, how: str, recwarn: pytest.WarningsRecorder) -> None:
    proof, path = tmp_path / "proof", tmp_path / "n.bin"
    evil = Malicious(proof)
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=4))
    else:
        torch.save({"emb": tensor(1, 4, 6), "evil": evil} if how == "in a dict" else evil, path)
    with pytest.raises(UserError, match="more than a tensor") as caught:
        NegativeEmbedding.load(path)
    assert not recwarn.list, "one line is all that is said"
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not proof.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert proof.exists()  # it would have worked


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"a": torch.ones(1, 4, 6), "b": torch.ones(1)}, {"a": 1}, {"a": {"b": torch.ones(1, 4, 6)}}, {}, "n"],
)
def test_pickles_of_anything_but_one_tensor(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "n.pt")
    with pytest.raises(UserError, match="more than a tensor"):
        NegativeEmbedding.load(tmp_path / "n.pt")


def test_missing_unknown_and_damaged_files(tmp_path: Path) -> None:
    def refuse(name: str, data: bytes | None, message: str) -> None:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            NegativeEmbedding.load(path)
        assert name in str(caught.value) and "\n" not in str(caught.value)

    refuse("missing.safetensors", None, "no such file")
    refuse("n.ckpt", b"data", "unknown kind")
    good = tmp_path / "good.safetensors"
    NegativeEmbedding(alone(tensor(1, 4, 6)), FULL).save(good)
    data = good.read_bytes()
    refuse("empty.safetensors", b"", "damaged")
    refuse("noise.safetensors", os.urandom(200), "damaged")
    refuse("cut.safetensors", data[:-8], "damaged")
    refuse("long.safetensors", struct.pack("<Q", 1 << 40) + data[8:], "damaged")
    header = struct.unpack("<Q", data[:8])[0]
    refuse(
        "steps.safetensors", data[:8] + data[8 : 8 + header].replace(b'"150"', b'"x50"') + data[8 + header :], "damaged"
    )
    save_file({"a": tensor(1, 4, 6), "b": tensor(1, 4, 6)}, tmp_path / "two.safetensors")
    refuse("two.safetensors", None, "2 tensors")
    torch.save(tensor(1, 4, 6), tmp_path / "good.bin")
    for name, damaged in {"empty.bin": b"", "cut.bin": (tmp_path / "good.bin").read_bytes()[:400]}.items():
        refuse(name, damaged, "damaged")
    refuse("noise.bin", b"not a pickle at all" * 9, "damaged")
    (tmp_path / "folder.safetensors").mkdir()
    refuse("folder.safetensors", None, "no such file")


@pytest.mark.parametrize("shape", [(6,), (2, 4, 6), (1, 1, 4, 6), (0, 4, 6), (1, 0, 6)])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_wrong_shapes(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    path = tmp_path / f"n{suffix}"
    if suffix == ".bin":
        torch.save(tensor(*shape), path)
    else:
        save_file({"n": tensor(*shape)}, path)
    with pytest.raises(UserError, match="shape") as caught:
        NegativeEmbedding.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    n = tensor(1, 4, 6)
    n[0, 1, 2] = value
    save_file({"n": n}, tmp_path / "n.safetensors")
    with pytest.raises(UserError, match="NaN or infinite"):
        NegativeEmbedding.load(tmp_path / "n.safetensors")
    with pytest.raises(UserError, match="NaN or infinite"):
        NegativeEmbedding(alone(n), FULL)


def test_whole_numbers_are_no_embedding() -> None:
    with pytest.raises(UserError, match="int64"):
        NegativeEmbedding(alone(torch.ones(1, 4, 6, dtype=torch.int64)), FULL)


def test_an_embedding_of_another_encoder_is_refused_and_both_are_named() -> None:
    embedding = NegativeEmbedding(alone(tensor(1, 4, 6)), FULL)
    embedding.check_fits(alone_of(4, 6), FULL.text_encoder_hash, "mine")
    with pytest.raises(UserError, match=r"\(4, 6\).*width 6.*mine.*\(77, 768\)"):
        embedding.check_fits(alone_of(77, 768), FULL.text_encoder_hash, "mine")
    with pytest.raises(UserError, match=r"width 6.*0123456789abcdef.*mine.*other"):
        embedding.check_fits(alone_of(4, 6), "other", "mine")
    NegativeEmbedding(alone(tensor(1, 4, 6)), replace(FULL, text_encoder_hash="")).check_fits(
        alone_of(4, 6), "other", "mine"
    )


SEVERAL = {
    "negative_prompt_embeds": tensor(1, 4, 6),
    "negative_pooled_prompt_embeds": tensor(1, 5).half(),
    "negative_prompt_attention_mask": torch.tensor([[1, 1, 0, 1]]),
}


def test_several_tensors_by_the_names_of_diffusers(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    NegativeEmbedding(SEVERAL, FULL).save(path)
    plain, loaded = load_file(path), NegativeEmbedding.load(path)
    assert plain.keys() == loaded.tensors.keys() == SEVERAL.keys() and loaded.metadata == FULL
    for name, tensor_ in SEVERAL.items():
        assert loaded.tensors[name].dtype == tensor_.dtype
        assert torch.equal(loaded.tensors[name], tensor_) and torch.equal(plain[name], tensor_)
    assert torch.equal(loaded.prompt_embeds, SEVERAL["negative_prompt_embeds"])
    shapes = {name: tuple(tensor_.shape) for name, tensor_ in SEVERAL.items()}
    loaded.check_fits(shapes, FULL.text_encoder_hash, "mine")


def test_the_shape_of_every_tensor_is_compared() -> None:
    shapes = {name: tuple(tensor_.shape) for name, tensor_ in SEVERAL.items()}
    embedding = NegativeEmbedding(SEVERAL, replace(FULL, text_encoder_hash=""))
    with pytest.raises(UserError, match=r"pooled_prompt_embeds \(5,\).*mine.*pooled_prompt_embeds \(7,\)"):
        embedding.check_fits(shapes | {"negative_pooled_prompt_embeds": (1, 7)}, "other", "mine")
    with pytest.raises(UserError, match=r"pooled_prompt_embeds \(5,\).*mine of shape \(4, 6\):"):
        embedding.check_fits(alone_of(4, 6), "other", "mine")
    without = {name: tensor_ for name, tensor_ in SEVERAL.items() if "mask" not in name}
    NegativeEmbedding(without, embedding.metadata).check_fits(shapes, "other", "mine")
    with pytest.raises(UserError, match=r"\(4, 6\) \(.*mine.*pooled"):
        NegativeEmbedding(alone(tensor(1, 4, 6)), embedding.metadata).check_fits(shapes, "other", "mine")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("negative_pooled_prompt_embeds", tensor(1, 5, 1), r"pooled.*\(1, 5, 1\)"),
        ("negative_pooled_prompt_embeds", torch.ones(1, 5, dtype=torch.int64), "int64"),
        ("negative_pooled_prompt_embeds", torch.full((1, 5), torch.nan), "NaN"),
        ("negative_prompt_attention_mask", torch.ones(1, 3), "4 tokens.*3"),
        ("negative_prompt_attention_mask", torch.ones(4), r"mask.*\(4,\)"),
        ("prompt_embeds", tensor(1, 4, 6), "prompt_embeds"),
    ],
)
def test_bad_parts_are_named(name: str, value: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        NegativeEmbedding(SEVERAL | {name: value}, FULL)
    save_file(SEVERAL | {name: value}, tmp_path / "n.safetensors")
    with pytest.raises(UserError, match=message):
        NegativeEmbedding.load(tmp_path / "n.safetensors")


def test_n_is_never_missing(tmp_path: Path) -> None:
    rest = {name: tensor_ for name, tensor_ in SEVERAL.items() if name != "negative_prompt_embeds"}
    save_file(rest, tmp_path / "n.safetensors")
    with pytest.raises(UserError, match="want negative_prompt_embeds"):
        NegativeEmbedding.load(tmp_path / "n.safetensors")
