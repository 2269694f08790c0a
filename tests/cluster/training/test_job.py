"""Training on Ray Train with the embedded model: worker counts, killed workers, killed and stopped drivers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from renege_ray.config.cli import from_args
from renege_ray.config.run import RunConfig, load_preset, write_config
from renege_ray.method.embedding import NegativeEmbedding
from renege_ray.models.load import load_model
from renege_ray.sampling.run_rewards import Rewards
from renege_ray.training.inputs import read_inputs, record_inputs
from renege_ray.training.state import TornCheckpointError, TrainingState
from renege_ray.training.train import Result, train_global

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[3]
STEPS = 20
FLAGS = [
    "--optim.lr", "5e-3", "--optim.steps", str(STEPS), "--optim.batch-size", "8", "--optim.timestep-groups", "2",
    "--sampling.num-inference-steps", "4", "--sampling.gradient-steps", "0,3",
    "--prompts.handwritten", "blurry", "--validation.every", "10", "--validation.num-prompts", "4",
    "--validation.num-images", "2", "--test.num-pairs", "8", "--checkpoint.every", "5",
    "--cluster.cpus-per-worker", "1",
]  # fmt: skip


def configure(folder: Path, num_workers: str) -> RunConfig:
    return from_args([*FLAGS, "--num-workers", num_workers, "--output-dir", str(folder)], "train_global").config


def final_state(folder: Path) -> TrainingState:
    (final,) = (folder / "checkpoints").glob(f"attempt-*/step-{STEPS:06d}-final")
    return TrainingState.load(final)


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def states(folder: Path) -> list[TrainingState]:
    """All whole checkpoints of a run. Ray deletes old ones, also while they are being read."""
    found = []
    for path in folder.glob("checkpoints/attempt-*/step-*"):
        try:
            found.append(TrainingState.load(path))
        except TornCheckpointError:
            continue
    return found


def has_checkpoint(folder: Path, step: int) -> bool:
    """Whether there is a whole checkpoint of this step or a later one."""
    return any(state.step >= step for state in states(folder))


def parent(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    return 0


def train_workers() -> list[int]:
    """The Ray Train workers below this process: those of the tests' own cluster."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                ancestor = int(entry.name)
                while ancestor > 1 and ancestor != os.getpid():
                    ancestor = parent(ancestor)
                if ancestor == os.getpid():
                    found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


@contextmanager
def driver(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A job in its own process; it does not outlive the test."""
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same training without Ray, unbroken, in this process."""
    config = configure(tmp_path_factory.mktemp("reference") / "run", "1")
    torch.set_num_threads(1)  # as many as a worker has with one CPU
    return train_global(config, load_model(config.model), Rewards.load(config.rewards), read_inputs(config).prompts)


def test_kills_and_stops_change_nothing(reference: Result, ray_cluster: str, tmp_path: Path) -> None:
    """A worker killed, then the driver killed, then a torn checkpoint, then SIGTERM: bit for bit the same."""
    from renege_ray.cluster.training.job import run

    folder = tmp_path / "run"
    environment = os.environ | {"RAY_ADDRESS": ray_cluster}
    command = [sys.executable, str(ROOT / "jobs" / "train_global.py"), *FLAGS, "--num-workers", "1"]
    command += ["--output-dir", str(folder)]
    with driver(command, environment, tmp_path) as process:
        wait_for(lambda: has_checkpoint(folder, 5) or process.poll() is not None)
        (worker,) = train_workers()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: has_checkpoint(folder, 10) or process.poll() is not None)
        assert worker not in train_workers()
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the job ended before it was killed"

    torn = folder / "checkpoints" / "attempt-001" / f"step-{STEPS - 1:06d}"
    torn.mkdir()
    (torn / "state.json").write_text("{}")  # a checkpoint that was being written when the power failed

    def stop_the_second_attempt() -> None:
        wait_for((folder / "checkpoints" / "attempt-002").is_dir)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_the_second_attempt)
    stopper.start()
    again = from_args(["--resume", str(folder)], "train_global")
    assert run(again.config, resume=again.resume) == 128 + signal.SIGTERM
    stopper.join()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert 10 <= max(state.step for state in states(folder)) < STEPS

    assert run(again.config, resume=again.resume) == 0
    for name, tensor in reference.state.ascent.items():
        assert torch.equal(final_state(folder).ascent[name], tensor), name
    assert torch.equal(final_state(folder).best.prompt_embeds, reference.best)
    check_results(folder, reference)


def check_results(folder: Path, reference: Result) -> None:
    """What a finished run leaves behind, however often it was broken."""
    config = load_preset(folder / "config.yaml")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["job"] == "train_global" and summary["status"] == "finished"
    assert summary["mlflow_run_id"] and "sqlite" in summary["mlflow_tracking_uri"]
    assert reference.test is not None
    for name, value in reference.test.metrics().items():
        assert summary["metrics"][name] == pytest.approx(value, abs=1e-9), name
    assert summary["metrics"]["train/steps"] == STEPS
    for name in ("embedding", "last_embedding", "table", "rewards", "before_after", "config"):
        assert (folder / summary["artifacts"][name]).is_file()
    rewards = json.loads((folder / "rewards.json").read_text())
    assert [reward["name"] for reward in rewards] == ["toy", "toy_held_out"]
    assert all(len(reward["sha256"]) == 64 and reward["version"] for reward in rewards)
    stored = NegativeEmbedding.load(folder / "negative_embedding.safetensors")
    assert stored.prompt_embeds.dtype == torch.float16
    assert torch.equal(stored.prompt_embeds.float(), reference.best)
    assert stored.metadata.guidance_scale == config.sampling.guidance_scale
    assert stored.metadata.text_encoder_hash and stored.metadata.base_model == "toy"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/reward" in line["metrics"]]
    assert sorted(steps) == list(range(1, STEPS + 1)), "each step is told once"
    assert len(list((folder / "images").glob("validation_*.png"))) == 3


def test_the_number_of_workers_does_not_matter(reference: Result, ray_cluster: str, tmp_path: Path) -> None:
    """An elastic group takes as many workers as it may have where there is room for them; here one has less to do."""
    from renege_ray.cluster.training.job import run

    folder = tmp_path / "run"
    assert run(configure(folder, "1-3")) == 0
    state = final_state(folder)
    assert state.world_size == 3
    alone = reference.state.ascent["embedding"]
    assert (state.ascent["embedding"] - alone).norm() / alone.norm() < 1e-5


def test_what_only_a_worker_meets_and_no_restart_helps_against(
    reference: Result, ray_cluster: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bad input is final there, too: in a group, whose others wait for the one that fails, all end by its reason."""
    from renege_ray.cluster.training.job import run

    folder = tmp_path / "run"
    config = configure(folder, "2")
    write_config(config, folder)
    record_inputs(read_inputs(config), folder)
    checkpoint = folder / "checkpoints" / "attempt-001" / "step-000005"
    checkpoint.mkdir(parents=True)
    replace(reference.state, step=5, test=None, fingerprint="another").write_files(checkpoint)
    assert run(config, resume=True) == 1
    said = capfd.readouterr()
    assert said.err.count("training failed") == 1 and "belongs to another configuration" in said.err
    assert "Traceback" not in said.err + said.out
