"""Encoded prompts in files: once a machine, whoever is killed, and nothing is left behind."""

import multiprocessing
import os
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from renege_ray.models.families.stable_diffusion import StableDiffusion
from renege_ray.sampling import stored_prompts
from renege_ray.sampling.encoded_prompts import EncodedPrompts
from renege_ray.sampling.stored_prompts import PROMPTS_PER_FILE, StoredPrompts, store
from tests.tiny import build_tiny_pipeline

FORK = multiprocessing.get_context("fork")
SHAPE = (3, 4)
PROMPTS = [f"prompt {i}" for i in range(2 * PROMPTS_PER_FILE + 5)]


def embedding_of(prompt: str) -> Tensor:
    return torch.full(SHAPE, float(prompt.split()[-1]), dtype=torch.bfloat16)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all sets."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(stored_prompts, "_latest", {})
    return tmp_path / f"renege_ray-encoded-{os.getuid()}"


def stored(
    prompts: list[str] = PROMPTS, encode: Callable[[str], Tensor] = embedding_of, key: str = "model"
) -> StoredPrompts:
    stored_prompts._latest.clear()  # as another process
    return store(encode, [key], prompts, SHAPE, torch.bfloat16, lambda line: None)


def test_each_prompt_is_encoded_once_for_all_processes(root: Path) -> None:
    asked: list[str] = []
    first = stored(encode=lambda prompt: asked.append(prompt) or embedding_of(prompt))  # type: ignore[func-returns-value]
    second = stored(PROMPTS[::-1], encode=lambda prompt: pytest.fail(prompt))
    assert sorted(asked) == sorted(PROMPTS)
    for prompt in PROMPTS:
        assert torch.equal(first[prompt], embedding_of(prompt)) and torch.equal(second[prompt], embedding_of(prompt))
    assert "another" not in first
    assert [file.name for file in root.iterdir()] and not [*root.glob("*/*.part")]
    first.close()
    assert len([*root.iterdir()]) == 1, "the second still needs it"
    second.close()
    second.close()
    assert not [*root.iterdir()] and torch.equal(second["prompt 7"], embedding_of("prompt 7")), "what is mapped stays"


def test_rows_are_mapped_and_not_read(root: Path) -> None:
    big = (64, 1024)  # 4.2 MB a file of 32
    found = store(lambda p: torch.zeros(big), ["big"], PROMPTS, big, torch.float32, lambda line: None)
    before = anonymous_bytes()
    assert float(sum(found[prompt].sum() for prompt in PROMPTS)) == 0
    assert anonymous_bytes() - before < 4e6, "all rows are 18 MB"
    found.close()


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


def test_what_a_killed_process_leaves_is_used_by_the_same_run_and_removed_by_another(root: Path) -> None:
    def encode(prompt: str) -> Tensor:
        if prompt == sorted(PROMPTS)[40]:
            os.kill(os.getpid(), 9)
        return embedding_of(prompt)

    killed = FORK.Process(target=lambda: stored(encode=encode))
    killed.start()
    killed.join()
    assert killed.exitcode == -9 and len([*root.glob("*/*.safetensors")]) == 1
    asked: list[str] = []
    found = stored(encode=lambda prompt: asked.append(prompt) or embedding_of(prompt))  # type: ignore[func-returns-value]
    assert sorted(asked) == sorted(PROMPTS)[PROMPTS_PER_FILE:], "the first file was whole"
    os.close(found._lock)  # as a kill would
    other = stored(key="another model")
    assert len([*root.iterdir()]) == 1
    other.close()


def test_two_processes_share_the_work(root: Path) -> None:
    asked, together = FORK.SimpleQueue(), FORK.Barrier(2)

    def work() -> None:
        def encode(prompt: str) -> Tensor:
            asked.put(prompt)
            time.sleep(0.01)
            return embedding_of(prompt)

        together.wait()
        found = stored(encode=encode)
        assert all(torch.equal(found[prompt], embedding_of(prompt)) for prompt in PROMPTS)
        together.wait()
        found.close()

    two = [FORK.Process(target=work) for _ in range(2)]
    for process in two:
        process.start()
    said = [asked.get() for _ in PROMPTS]
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0] and asked.empty()
    assert sorted(said) == sorted(PROMPTS), "each by one of them"
    assert not [*root.iterdir()]


def test_a_full_disk_is_one_line_and_prompts_are_encoded_as_they_come(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(stored_prompts.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    model = StableDiffusion(build_tiny_pipeline(), "tiny")
    encoded, lines = EncodedPrompts(model), []
    encoded.share(["a red fox", "a hen"], lines.append)
    assert len(lines) == 1 and "GB are free" in lines[0] and "set TMPDIR" in lines[0] and "\n" not in lines[0]
    assert torch.equal(encoded(["a hen"]), model.encode_prompts(["a hen"])) and not [*root.iterdir()]


def test_a_prompt_that_was_not_foreseen_works_beside_the_others(root: Path) -> None:
    model = StableDiffusion(build_tiny_pipeline(), "tiny", dtype=torch.bfloat16)
    encoded, prompts = EncodedPrompts(model), ["a red fox", "a hen", "a blue bird"]
    encoded.share(prompts[:2])
    found = encoded([*prompts, "a hen"])
    one_by_one = [model.encode_prompts([prompt]) for prompt in (*prompts, "a hen")]
    assert torch.equal(found, torch.cat(one_by_one)) and found.dtype == torch.float32
    assert list(encoded._kept._kept) == ["a blue bird"] and torch.equal(encoded.null(), model.null_embedding())
    encoded.close()
    assert torch.equal(encoded(prompts[:1]), one_by_one[0]) and not [*root.iterdir()]
