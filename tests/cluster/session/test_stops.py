"""What ends jobs on a cluster (scancel, a closed terminal) signals every process of a job, Ray's own among them."""

import json
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.cluster.killing import below, job, wait_for, with_signal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

TRAINING = [
    "--optim.steps", "500", "--optim.batch-size", "4", "--optim.timestep-groups", "1", "--num-workers", "1",
    "--validation.every", "250", "--validation.num-prompts", "2", "--prompts.handwritten", "blurry",
    "--checkpoint.every", "1",
]  # fmt: skip


def test_a_signal_to_the_whole_tree(tmp_path: Path) -> None:
    folder, number = tmp_path / "run", signal.SIGTERM
    with job("train_global", [*TRAINING, "--output-dir", str(folder)], folder, patience=60) as process:
        log = folder.with_suffix(".log")
        wait_for(lambda: log.exists() and "step " in log.read_text(), process)
        time.sleep(3)
        started = time.monotonic()
        for pid in [*below(process.pid, [""]), process.pid]:  # the job itself twice, as `timeout` does
            with_signal(pid, number)
        assert process.wait(timeout=60) == 128 + number
        assert time.monotonic() - started <= 30
        assert "Traceback" not in log.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    run = MlflowClient(summary["mlflow_tracking_uri"]).get_run(summary["mlflow_run_id"])
    assert run.info.status == "KILLED"
    assert list(folder.glob("checkpoints/attempt-001/step-*"))
