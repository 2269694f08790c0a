"""Finding and reading the files of rewards. The Hub is a cache folder made here: nothing is downloaded."""

import hashlib
import pickle
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from renege_ray.errors import UserError
from renege_ray.rewards import checkpoints
from renege_ray.rewards.catalogue import CLIP_VOCABULARY, REWARDS, SOURCES
from renege_ray.rewards.checkpoints import assemble, locate, read_weights, sha256
from renege_ray.rewards.load import load_rewards, load_scorers, locate_rewards
from tests.rewards.open_clip_models import VOCABULARY


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to the Hub."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return cache


def in_cache(cache: Path, repository: str, files: Mapping[str, bytes]) -> Path:
    """As the Hub's library leaves downloaded files: named by their SHA-256, with links in a snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("c" * 40)
    for part in (folder / "refs", folder / "blobs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("c" * 40)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return snapshot


def without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)


def test_a_local_file_or_its_folder(tmp_path: Path) -> None:
    checkpoint = tmp_path / "HPS_v2.1_compressed.pt"
    checkpoint.write_bytes(b"x")
    renamed = tmp_path / "renamed.pt"
    renamed.write_bytes(b"x")
    for given, expected in ((checkpoint, checkpoint), (tmp_path, checkpoint), (renamed, renamed)):
        for name in ("hpsv2", "hpsv2-v2.1"):
            located = locate_rewards(["hpsv2"], {name: str(given)})["hpsv2"]
            assert located == {"hpsv2-v2.1": expected, "clip_vocabulary": VOCABULARY}


def test_what_lies_beside_the_weights_comes_first(tmp_path: Path) -> None:
    for name in ("HPS_v2.1_compressed.pt", "merges.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert locate(REWARDS["hpsv2-v2.1"], {"hpsv2": tmp_path})["clip_vocabulary"] == tmp_path / "merges.txt"
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(b"x")
    found = locate(REWARDS["hpsv2-v2.1"], {"hpsv2": tmp_path})["clip_vocabulary"]
    assert found == tmp_path / "tokenizer" / "tokenizer.json"
    given = locate(REWARDS["hpsv2-v2.1"], {"hpsv2": tmp_path, "clip_vocabulary": VOCABULARY})
    assert given["clip_vocabulary"] == VOCABULARY


def test_the_hubs_cache_needs_no_connection(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_open_clip(monkeypatch)
    weights = in_cache(hub_cache, "xswu/HPSv2", {"HPS_v2.1_compressed.pt": b"weights"})
    tokens = in_cache(hub_cache, "openai/clip-vit-large-patch14", {"merges.txt": b"merges"})
    located = locate(REWARDS["hpsv2-v2.1"], {})
    expected = {"hpsv2-v2.1": weights / "HPS_v2.1_compressed.pt", "clip_vocabulary": tokens / "merges.txt"}
    assert located == expected
    assert sha256(located["hpsv2-v2.1"]) == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("name", [name for name, facts in REWARDS.items() if facts.sources])
def test_no_weights_and_no_connection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = REWARDS[name].sources[0]
    with pytest.raises(UserError) as caught:
        load_rewards([name])
    message = str(caught.value)
    assert f"reward {name} needs {source.files[0]}" in message and source.repository in message
    assert f"--rewards.checkpoints '{{{source.name}: PATH}}'" in message and f"--checkpoint {source.name}=" in message
    assert "the Hub cannot be reached: connect" in message and "\n" not in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        load_rewards([name])


def test_no_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_open_clip(monkeypatch)
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"needs merges.txt of openai/clip.* beside the weights, .*clip_vocabulary: "):
        locate(REWARDS["hpsv2-v2.1"], {"hpsv2": tmp_path})


def test_half_a_download_is_none(hub_cache: Path) -> None:
    in_cache(hub_cache, "yuvalkirstain/PickScore_v1", {"config.json": b"{}"})
    with pytest.raises(UserError, match=r"needs model\.safetensors and config\.json of yuvalkirstain"):
        locate(REWARDS["pickscore"], {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hpsv2": "nowhere.pt"}, r"hpsv2-v2\.1: there is no .*nowhere\.pt'; give .*HPS_v2\.1_compressed\.pt of xswu"),
        ({"hpsv2": "empty"}, r"hpsv2-v2\.1: .*empty' has not got HPS_v2\.1_compressed\.pt"),
        ({"hpsv2": "HPS_v2_compressed.pt"}, r"is the file of hpsv2-v2\.0; call it by that name"),
        ({"hpsv": "empty"}, r"'hpsv' is not known: did you mean 'hpsv2'\?"),
        ({"toy": "empty"}, "'toy' is not known"),
    ],
)
def test_bad_paths(given: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "HPS_v2_compressed.pt").write_bytes(b"x")
    paths = {name: str(tmp_path / path) for name, path in given.items()}
    for load in (load_rewards, load_scorers):
        with pytest.raises(UserError, match=rf"^rewards\.checkpoints: .*{message}") as caught:
            load(["hpsv2"], checkpoints=paths)
        assert "\n" not in str(caught.value)


def test_a_clip_folder_without_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    for given in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match=r"has not got model\.safetensors and config\.json of openai/clip"):
            locate(REWARDS["clip"], {"clip": given})


def test_every_source_has_one_meaning() -> None:
    assert all(SOURCES[source.name] == source for facts in REWARDS.values() for source in facts.sources)
    assert SOURCES["clip_vocabulary"] is CLIP_VOCABULARY


def test_sha256_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"two and more"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()
    # A folder that somebody named `blobs` says nothing of what is in it.
    other = tmp_path / "blobs" / ("f" * 63)
    other.parent.mkdir()
    other.write_bytes(b"x")
    assert sha256(other) == hashlib.sha256(b"x").hexdigest()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return subprocess.check_call, (["touch", str(trap)],)

    torch.save({"state_dict": {"a": torch.zeros(1)}, "evil": Trap()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    (tmp_path / "short.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:100])
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    for name in ("evil.pt", "bare.pt", "short.pt", "text.pt", "bad.safetensors"):
        with pytest.raises(UserError, match=f"{name} cannot be read") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_in_any_container(new_format: bool, tmp_path: Path) -> None:
    weights = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    for name, content in (("bare", weights), ("wrapped", {"epoch": 1, "state_dict": weights})):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=new_format)
        read = read_weights(tmp_path / name)
        assert read.keys() == weights.keys() and all(torch.equal(read[key], weights[key]) for key in weights)


def test_weights_are_taken_over_not_copied(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(2, 3), "bias": torch.randn(2).half(), "other": torch.ones(1)}, tmp_path / "a.pt")
    weights = read_weights(tmp_path / "a.pt")
    linear = assemble(lambda: nn.Linear(3, 2), weights, tmp_path / "a.pt")
    assert linear.weight.data_ptr() == weights["weight"].data_ptr()
    assert linear.bias.dtype == torch.float32 and torch.equal(linear.bias, weights["bias"].float())
    assert not linear.training and not linear.weight.requires_grad
