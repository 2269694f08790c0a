"""The adapter to VBench's package. What needs the package runs where RENEGE_RAY_VBENCH_PYTHON names its interpreter."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from renege_ray.errors import UserError
from renege_ray.evaluation.vbench import main, vbench_scores
from renege_ray.rewards.video.video_metrics import temporal_flickering

PYTHON = os.environ.get("RENEGE_RAY_VBENCH_PYTHON")


def test_what_is_wrong_is_said_before_anything_is_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="is no folder with"):
        vbench_scores(tmp_path)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=r"--dimension: 'colour' is not one that takes any videos: aesthetic_quality,"):
        vbench_scores(tmp_path, ["colour"])
    with pytest.raises(UserError, match=r"--python: '/no/python' cannot be run"):
        vbench_scores(tmp_path, python="/no/python")
    # Without site-packages: in whatever environment the tests run, this interpreter has no vbench.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=f"the package vbench is not installed for {bare}"):
        main([str(tmp_path), "--python", str(bare)])


@pytest.mark.skipif(PYTHON is None, reason="RENEGE_RAY_VBENCH_PYTHON is not set")
def test_the_package_agrees(tmp_path: Path) -> None:
    """On GIFs of few colours, which lose nothing."""
    levels = torch.randint(4, (2, 1, 5, 16, 24), generator=torch.Generator().manual_seed(0)) * 85
    videos = (levels / 255).expand(-1, 3, -1, -1, -1)
    for name, frames in zip(("a.gif", "b.gif"), levels[:, 0].to(torch.uint8).numpy(), strict=True):
        first, *others = [Image.fromarray(frame) for frame in frames]
        first.save(tmp_path / name, save_all=True, append_images=others, duration=100)
    found = vbench_scores(tmp_path, ["temporal_flickering"], python=str(PYTHON), device="cpu")["temporal_flickering"]
    expected = temporal_flickering(videos)
    assert found == pytest.approx({"a.gif": expected[0].item(), "b.gif": expected[1].item()}, abs=1e-6)
