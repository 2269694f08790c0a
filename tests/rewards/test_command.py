"""`renege-ray rewards`, for people."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from renege_ray.errors import UserError
from renege_ray.output.pictures import save_png, to_pil
from renege_ray.rewards.catalogue import REWARD_NAMES
from renege_ray.rewards.command import main
from renege_ray.rewards.load import load_rewards
from tests.rewards.open_clip_models import open_clip_model, save_checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A picture of the embedded model's size, a wide grey one and a small one with transparency."""
    generator = torch.Generator().manual_seed(0)
    save_png(to_pil(torch.rand(3, 32, 32, generator=generator)), tmp_path / "rgb.png")
    save_png(to_pil(torch.rand(3, 40, 90, generator=generator)).convert("L"), tmp_path / "grey.png")
    save_png(Image.new("RGBA", (5, 7), (255, 0, 0, 128)), tmp_path / "rgba.png")
    return [str(tmp_path / name) for name in ("rgb.png", "grey.png", "rgba.png")]


def test_a_table(images: list[str], capsys: Capture) -> None:
    main(["score", "--reward", "toy", "--prompt", "a big red star", *images])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "toy", "usual", "range"]
    assert [row.split()[0] for row in rows] == images and all("-4 to 5.5" in row for row in rows)
    pixels = torch.tensor(list(Image.open(images[0]).tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    expected = load_rewards(["toy"])["toy"].score(pixels, ["a big red star"])
    assert float(rows[0].split()[1]) == pytest.approx(expected.item(), abs=1e-4)


def test_json_with_a_checkpoint(images: list[str], tmp_path: Path, capsys: Capture) -> None:
    checkpoint = save_checkpoint(open_clip_model(layers=1), tmp_path / "HPS_v2.1_compressed.pt")
    scores = []
    for path in (str(checkpoint), f"hpsv2={tmp_path}"):
        flags = ["--reward", "hpsv2", "--checkpoint", path, "--device", "cpu", "--json"]
        main(["score", *flags, "--prompt", "fox " * 99, *images])
        said = json.loads(capsys.readouterr().out)
        assert said["reward"]["name"] == "hpsv2-v2.1" and said["reward"]["truncated_prompts"] == 1
        assert len(said["reward"]["sha256"]) == 64 and said["prompt"] == "fox " * 99
        assert [row["image"] for row in said["scores"]] == images
        scores.append([row["score"] for row in said["scores"]])
    assert scores[0] == scores[1]


def test_a_cut_prompt_is_said(images: list[str], capsys: Capture) -> None:
    main(["score", "--reward", "toy", "--prompt", "star " * 99, images[0]])
    assert "too long" in capsys.readouterr().out.splitlines()[-1]


def test_the_list(capsys: Capture) -> None:
    main(["list"])
    out = capsys.readouterr().out
    assert all(name in out for name in REWARD_NAMES) and "HPS_v2.1_compressed.pt of xswu/HPSv2" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "hpsv4", "--prompt", "x", "IMAGE"], "--reward 'hpsv4' is not known: did you mean 'hpsv3'?"),
        (["--prompt", "x", "IMAGE"], "--reward"),
        (["--reward", "toy", "IMAGE"], "--prompt: toy needs one"),
        (["--reward", "toy", "--prompt", "x"], "IMAGE"),
        (["--reward", "toy", "--prompt", "x", "none.png"], "image none.png: there is no such file"),
        (["--reward", "toy", "--prompt", "x", __file__], "cannot be read (UnidentifiedImageError)"),
        (["--reward", "toy", "--prompt", "x", "--device", "abacus", "IMAGE"], "--device: 'abacus' cannot be used"),
        (["--reward", "clip", "--prompt", "x", "--checkpoint", "none", "IMAGE"], "clip: there is no 'none'"),
        (["--reward", "clip", "--prompt", "x", "--checkpoint", "clp=x", "IMAGE"], "did you mean 'clip'?"),
        (["--reward", "clip", "--prompt", "x", "--checkpoint", "a", "--checkpoint", "b", "IMAGE"], "given twice"),
    ],
)
def test_bad_input(arguments: list[str], message: str, images: list[str], capsys: Capture) -> None:
    with pytest.raises(UserError) as caught:
        main(["score", *(images[0] if word == "IMAGE" else word for word in arguments)])
    assert capsys.readouterr().out == "" and message in str(caught.value)


@pytest.mark.slow
def test_from_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "renege_ray", "rewards", "score", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("hpsv2", "--checkpoint", "--json", "examples:", "usual range"):
        assert word in done.stdout
