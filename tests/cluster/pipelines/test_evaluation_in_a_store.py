"""An evaluation whose rows and images lie in an object store, killed midway: the same command goes on with them."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.cluster.killing import job, wait_for
from tests.object_store import Store, store

__all__ = ["store"]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PROMPTS, SEEDS = 12, 2
FLAGS = [
    "--num-prompts", str(PROMPTS), "--seeds-per-prompt", str(SEEDS), "--evaluation.batch-size", "6",
    "--sampling.num-inference-steps", "4", "--rewards.judges", "[]", "--cluster.cpus-per-worker", "1",
    "--method", "null", "--method", "handwritten",
]  # fmt: skip


def test_a_killed_evaluation_goes_on_in_its_store(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = [*FLAGS, "--output-dir", str(folder), "--cluster.storage-path", store.uri("bucket/shared/")]

    def files() -> int:
        return sum("/part-" in key and "/." not in key for key in store.objects())

    with job("evaluate", flags, folder) as process:
        wait_for(lambda: files() >= 1, process)
        os.kill(process.pid, signal.SIGKILL)
    assert files() and not (folder / "images.parquet").exists()
    with job("evaluate", flags, folder) as process:
        assert process.wait() == 0, folder.with_suffix(".log").read_text()
    assert f"of {PROMPTS * SEEDS * 2} images have a row already" in folder.with_suffix(".log").read_text()
    table = pd.read_parquet(folder / "images.parquet")
    assert len(table) == PROMPTS * SEEDS * 2 and not table.duplicated(["prompt_id", "seed", "method"]).any()
    name = (folder / "run.id").read_text().strip()
    keys = store.objects()
    assert {f"shared/{name}/images/{image}" for image in table["image"]} <= set(keys)
    assert not [key for key in keys if "/." in key], "leftovers of the kill are gone"
    page = (folder / "report.html").read_text()
    assert page.count("UklGR") >= len(table), "every picture (WebP, as base64) has come from the store"
