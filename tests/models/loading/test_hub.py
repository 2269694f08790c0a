import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants

from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.load import load_model


@pytest.fixture
def saved(tiny_pipeline: Callable[..., StableDiffusionPipeline], tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


def refused(model: str, *parts: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_model(ModelConfig(id=model, **options), "cpu")
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_bad_folders(saved: Path, tmp_path: Path) -> None:
    refused(str(tmp_path / "missing"), str(tmp_path / "missing"), "no such folder", "model_index.json")
    refused("./missing", "./missing", "no such folder")
    refused("a/b/c", "no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(str(empty), str(empty), "model_index.json")
    refused(str(saved / "model_index.json"), "is a file", "folder")
    refused(str(saved), "fp16", variant="fp16")

    def broken(name: str) -> Path:
        return Path(shutil.copytree(saved, tmp_path / name))

    video = broken("video")
    (video / "model_index.json").write_text(json.dumps({"_class_name": "AnimateDiffPipeline"}))
    refused(str(video), "AnimateDiffPipeline", "StableDiffusionXLPipeline", "PixArtAlphaPipeline")
    index = broken("index")
    (index / "model_index.json").write_text("{")
    refused(str(index), "model_index.json", "damaged")
    for part, name in {
        "unet": "diffusion_pytorch_model.safetensors",
        "vae": "diffusion_pytorch_model.safetensors",
        "text_encoder": "model.safetensors",
    }.items():
        without = broken(f"without_{part}")
        (without / part / name).unlink()
        refused(str(without), str(without), name)
        damaged = broken(f"damaged_{part}")
        (damaged / part / name).write_bytes(b"noise" * 50)
        refused(str(damaged), str(damaged))
    pickled = broken("pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    refused(str(pickled), "safetensors")


def test_the_hub_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refused("nobody/nothing", "nobody/nothing", "HF_HUB_OFFLINE", "model_index.json", "local folder")


class _Hub(http.server.BaseHTTPRequestHandler):
    """A Hub that knows no model, hangs up on some, and has a revision `main` only."""

    def do_GET(self) -> None:
        if "hangs/up" in self.path:
            self.close_connection = True
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "revised/model" in self.path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_the_hub_without_the_model_or_out_of_reach(hub: str, tmp_path: Path) -> None:
    """In a process of its own: the client reads its address when it is imported."""
    code = """
from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.loading.hub import find_folder
for name, revision in (("nobody/nothing", None), ("revised/model", "v9"), ("hangs/up", None)):
    try:
        find_folder(ModelConfig(id=name, revision=revision))
    except UserError as error:
        print(error)
"""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    nothing, revised, hangs = done.stdout.splitlines()
    assert "nobody/nothing" in nothing and "check the spelling" in nothing and "local folder" in nothing
    assert "revised/model" in revised and "'v9'" in revised
    assert "hangs/up" in hangs and "cannot be reached" in hangs and "local folder" in hangs
