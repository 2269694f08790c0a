"""What a run reports is on disk at once and in MLflow soon, whatever happens to server or process."""

import json
import math
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking import runs as tracking
from renege_ray.cluster.tracking.command import main
from renege_ray.cluster.tracking.registry import registered_name
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.cluster.tracking.runs import open_run, resolve_uri, ui_command
from renege_ray.cluster.tracking.texts import flatten, safe_name
from renege_ray.cluster.tracking.uris import program
from renege_ray.errors import UserError, masked
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from tests.mlflow_server import free_port, kill, server

ROOT = Path(tracking.__file__).parents[3]
PARAMS = {"optim": {"lr": 5e-3, "betas": [0.9, 0.99]}, "prompts": {"train": "toy"}, "note": "x" * 9000}


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests (its creation takes seconds), in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("a store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    open_run(folder / "first", job="train_global", experiment="tests", params={}, tracking_uri=uri).finish()
    return uri


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def start(output_dir: Path, uri: str | None) -> RunLog:
    return open_run(output_dir, job="train_global", experiment="tests", params=PARAMS, tracking_uri=uri)


def write_embedding(path: Path) -> NegativeEmbedding:
    tensor = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    metadata = EmbeddingMetadata(text_encoder_hash="abc", base_model="toy", reward="toy")
    embedding = NegativeEmbedding({"negative_prompt_embeds": tensor}, metadata)
    embedding.save(path)
    return embedding


def report(log: RunLog, steps: range) -> None:
    for step in steps:
        log.metrics(step, {"train/toy/mean": step / 10, "perf/samples_per_second": 3.0})


def history(client: MlflowClient, run_id: str | None, name: str) -> dict[int, float]:
    found = client.get_metric_history(str(run_id), name)
    assert len({metric.step for metric in found}) == len(found), "a step is doubled"
    return {metric.step: metric.value for metric in found}


def artifacts(client: MlflowClient, run_id: str | None, folder: str | None = None) -> list[str]:
    return sorted(info.path for info in client.list_artifacts(str(run_id), folder))


def image_keys(client: MlflowClient, run_id: str | None) -> list[tuple[str, int]]:
    """The key and the step of every full-size image of a run, in the names that MLflow's slider reads."""
    names = [Path(path).name for path in artifacts(client, run_id, "images") if path.endswith(".png")]
    return sorted((name.split("+")[0], int(name.split("+")[2])) for name in names)


def run_everything(output_dir: Path, uri: str) -> tuple[RunLog, NegativeEmbedding]:
    """A whole run, as a job would report it."""
    with start(output_dir, uri) as log:
        report(log, range(1, 6))
        for step in (0, 5):
            log.image("validation", Image.new("RGB", (64, 48), (40 * step, 0, 0)), step)
        (output_dir / "config.yaml").write_text("seed: 0\n")
        log.artifact(output_dir / "config.yaml")
        (output_dir / "results.txt").write_text("null  1.0\n")
        log.describe(output_dir / "results.txt")
        embedding = write_embedding(output_dir / "embedding.safetensors")
        metadata = {"reward": "toy", "text_encoder_hash": "abc", "guidance_scale": None}
        log.register_embedding(output_dir / "embedding.safetensors", "toy", metadata, step=5)
        log.finish(artifacts={"embedding": output_dir / "embedding.safetensors"}, metrics={"eval/global/toy/mean": 1.5})
    return log, embedding


def check_everything(log: RunLog, uri: str, embedding: NegativeEmbedding) -> Run:
    """Read a run of `run_everything` back through MLflow alone."""
    client = MlflowClient(uri)
    run = client.get_run(str(log.run_id))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == log.output_dir.name
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.tags["mlflow.note.content"] == "```text\nnull  1.0\n\n```"
    assert run.data.params["optim.lr"] == "0.005"
    assert len(run.data.params["note"]) == 6000
    assert history(client, log.run_id, "train/toy/mean") == {step: step / 10 for step in range(1, 6)}
    assert artifacts(client, log.run_id) == ["config.yaml", "embedding.safetensors", "images", "summary.json"]
    assert image_keys(client, log.run_id) == [("validation", 0), ("validation", 5)]
    summary = json.loads(Path(client.download_artifacts(str(log.run_id), "summary.json")).read_text())
    assert summary == journal.read_json(log.output_dir / "summary.json")
    assert summary["mlflow_run_id"] == log.run_id
    assert summary["artifacts"] == {"embedding": "embedding.safetensors"}
    assert summary["metrics"] == {"eval/global/toy/mean": 1.5}

    (version,) = client.search_model_versions(f"name = 'renege_ray-toy' and run_id = '{log.run_id}'")
    assert version.tags["reward"] == "toy"
    try:
        mlflow.set_tracking_uri(uri)
        model = mlflow.pyfunc.load_model(f"models:/renege_ray-toy/{version.version}")
    finally:
        mlflow.set_tracking_uri(None)  # which also clears the environment variable that it had set
    assert model.metadata.metadata == {"reward": "toy", "text_encoder_hash": "abc"}
    for model_input in (None, pd.DataFrame({"prompt": ["a red circle", "a cross"]})):
        np.testing.assert_array_equal(model.predict(model_input), embedding.prompt_embeds.numpy())
    handed_out = model.unwrap_python_model().negative_prompt_embeds()
    assert torch.equal(handed_out, embedding.prompt_embeds)
    return run


def test_a_run_is_read_back_from_sqlite(database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, embedding = run_everything(tmp_path / "run", database)
    check_everything(log, database, embedding)
    experiment = MlflowClient(database).get_run(str(log.run_id)).info.experiment_id
    assert log.review() == f"MLflow: {ui_command(database, experiment, str(log.run_id))}"
    assert f"#/experiments/{experiment}/runs/{log.run_id}?workflowType=machine_learning" in log.review()
    said = capfd.readouterr()
    assert said.out + said.err == "", "MLflow is not quiet"


def test_registered_embedding_fits_a_diffusers_pipeline(
    database: str, tmp_path: Path, tiny_pipeline: Callable[..., StableDiffusionPipeline]
) -> None:
    pipeline = tiny_pipeline(width=8).to(torch.float64)
    with start(tmp_path / "run", database) as log:
        write_embedding(tmp_path / "run" / "embedding.safetensors")
        log.register_embedding(tmp_path / "run" / "embedding.safetensors", "org/tiny", {}, step=1)
        log.finish()
    location = MlflowClient(database).get_model_version("renege_ray-org--tiny", "1").source
    handed_out = mlflow.pyfunc.load_model(location).unwrap_python_model().negative_prompt_embeds(pipeline)
    assert (handed_out.shape, handed_out.dtype) == ((1, 5, 8), torch.float64)


def test_two_models_are_never_registered_as_one() -> None:
    names = ["toy", "a/b", "a-b", "a--b", "a:b", "a b", "a/b + c", "a/b + c.d", "红色", "x" * 300, "x" * 301]
    registered = [registered_name(name) for name in names]
    assert len({name.lower() for name in registered}) == len(names) - 1  # a/b is what the Hub's cache calls a--b
    assert registered[0] == "renege_ray-toy" and not any(set(name) & set("/:") for name in registered)


def test_default_store_lies_beside_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_uri(None, tmp_path / "run") == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None, tmp_path / "run") == "http://127.0.0.1:5000"
    assert resolve_uri("sqlite:////x/y.db", tmp_path / "run") == "sqlite:////x/y.db"
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///y.db", tmp_path / "run") == f"sqlite:///{tmp_path / 'y.db'}"
    for bad in ("mlruns", "http://", "ftp://host", "sqlite:///"):
        with pytest.raises(UserError, match="tracking_uri"):
            resolve_uri(bad, tmp_path / "run")


def test_ui_command_is_exact_and_quoted(tmp_path: Path) -> None:
    command = ui_command("sqlite:////a b/mlflow.db")
    program = "ui --backend-store-uri 'sqlite:////a b/mlflow.db' --host 127.0.0.1 --port 5000"
    assert command.endswith(f"mlflow {program}")
    assert ui_command("http://127.0.0.1:5000") == "open http://127.0.0.1:5000 in a browser"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "http://user:pa@ss@host:1/x and postgresql://u:p@db/mlflow",
            "http://***@host:1/x and postgresql://***@db/mlflow",
        ),
        ("failed: http://user:secret@host:1/api", "failed: http://***@host:1/api"),
        ("http://host:1/a@b", "http://host:1/a@b"),
        ("somebody@example", "somebody@example"),
    ],
)
def test_credentials_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_nothing_secret_is_printed_or_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://somebody:hunter2@127.0.0.1:{free_port()}"
    params = {"tracking_uri": uri}
    log = open_run(tmp_path / "run", job="train_global", experiment="tests", params=params, tracking_uri=uri)
    log.metrics(1, {"a": 1.0})
    log.finish()
    assert main(["send", str(tmp_path / "run"), "--tracking-uri", uri]) == 1
    said = capfd.readouterr()
    files = "".join(path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert "hunter2" not in said.out + said.err + caplog.text + files + log.review() + ui_command(uri)
    assert "***@127.0.0.1" in caplog.text


def test_flatten_gives_dotted_names_that_mlflow_takes() -> None:
    flat = flatten({"a": {"b": 1, "c": {}, "d,e": None}, "f": [1, 2], "x/../y": "z"})
    assert flat == {"a.b": "1", "a.c": "{}", safe_name("a.d,e"): "None", "f": "[1, 2]", safe_name("x/../y"): "z"}


def test_two_names_never_become_one_in_mlflow(database: str, tmp_path: Path) -> None:
    """What MLflow refuses (a letter, a path, a length) is replaced, and each name keeps its own curve."""
    start_of = "scores/" + "x" * 300
    names = [
        "scores/a b/r",
        "scores/a:b/r",
        "scores/a-b/r",
        "scores/a,b/r",
        "scores/../r",
        "scores/./r",
        "scores/r",
        "🦊",
        "🐱",
        "::",
    ]
    names += [
        "scores/红色/r",
        "scores/लाल/r",
        "scores/ललल/r",
        f"{start_of}/1",
        f"{start_of}/2",
        "x" * 249 + "/y",
        "x/",
        "x//",
    ]
    with start(tmp_path / "run", database) as log:
        log.metrics(1, {name: float(i) for i, name in enumerate(names)})
        log.finish()
    for i, name in enumerate(names):
        assert history(MlflowClient(database), log.run_id, safe_name(name)) == {1: float(i)}
    assert safe_name("scores/红色/r") == "scores/红色/r" and safe_name("scores/a:b/r").startswith("scores/a-b/r-")


def test_numbers_that_are_not_finite(database: str, tmp_path: Path) -> None:
    with start(tmp_path / "run", database) as log:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf, 2.0]):
            log.metrics(step, {"reward, (odd) name": value})
        summary = log.finish(metrics={"x": math.nan})
    assert summary["metrics"] == {"x": None}
    lines = [record for record, _ in journal.read(tmp_path / "run" / "metrics.jsonl")]
    assert [line["metrics"]["reward, (odd) name"] for line in lines] == [1.0, "nan", "inf", "-inf", 2.0]
    sent = history(MlflowClient(database), log.run_id, safe_name("reward, (odd) name"))
    assert [step for step, value in sent.items() if math.isnan(value)] == [1, 2, 3]
    assert (sent[0], sent[4]) == (1.0, 2.0)


def test_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal.append(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "metr')
    assert [record for record, _ in journal.read(path)] == [{"step": 1}]
    journal.append(path, {"step": 3})
    records = list(journal.read(path))
    assert [record for record, _ in records] == [{"step": 1}, {"step": 3}]
    assert list(journal.read(path, records[0][1])) == records[1:]
    assert list(journal.read(path, records[1][1])) == []
    assert list(journal.read(tmp_path / "missing")) == []


def test_more_metrics_than_one_call_takes(database: str, tmp_path: Path) -> None:
    with start(tmp_path / "run", database) as log:
        log.metrics(0, {f"many/{number}": float(number) for number in range(1100)})
        for step in range(1, 30):
            log.metrics(step, {f"some/{number}": float(step) for number in range(90)})
        log.finish()
    client = MlflowClient(database)
    assert len(client.get_run(str(log.run_id)).data.metrics) == 1190
    assert list(history(client, log.run_id, "some/89")) == list(range(1, 30))


@pytest.mark.slow
def test_killed_and_resumed_run_goes_on_without_doubling(database: str, tmp_path: Path) -> None:
    """The process is killed with a torn line; the resumed one repeats the steps since its checkpoint."""
    output_dir = tmp_path / "run"
    program = f"""
import os, signal
from pathlib import Path
from PIL import Image
from renege_ray.cluster.tracking.runs import open_run
log = open_run(Path({str(output_dir)!r}), job="train_global", experiment="tests", params={{"workers": 1}},
               tracking_uri={database!r})
for step in range(1, 8):
    log.metrics(step, {{"train/toy/mean": step / 10}})
    if step == 4:
        log.image("validation", Image.new("RGB", (8, 8)), step)
        assert log.flush()
with open({str(output_dir / "metrics.jsonl")!r}, "ab") as file:
    file.write(b'{{"step": 8, "time')
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(tracking.__file__).parents[3], check=False)
    assert killed.returncode == -signal.SIGKILL
    run_id = journal.read_json(output_dir / "tracking.json")["run_id"]
    client = MlflowClient(database)
    assert client.get_run(run_id).info.status == "RUNNING"

    params = {"workers": 2, "new": 1}
    log = open_run(output_dir, job="train_global", experiment="tests", params=params, tracking_uri=database)
    assert log.run_id == run_id
    for step in range(4, 11):
        log.metrics(step, {"train/toy/mean": step / 10})
    log.image("validation", Image.new("RGB", (8, 8)), 4)
    log.finish()
    assert history(client, run_id, "train/toy/mean") == {step: step / 10 for step in range(1, 11)}
    assert image_keys(client, run_id) == [("validation", 4)]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"workers": "1", "new": "1"}
    assert run.data.tags["resumed.workers"] == "2"

    again = start(output_dir, database)
    assert client.get_run(run_id).info.status == "RUNNING"
    again.finish("interrupted")
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_copy_in_another_process_writes_and_the_opener_sends(database: str, tmp_path: Path) -> None:
    log = start(tmp_path / "run", database)
    (tmp_path / "log").write_bytes(pickle.dumps(log))
    program = f"""
import pickle, sys, threading
from pathlib import Path
log = pickle.loads(Path({str(tmp_path / "log")!r}).read_bytes())
log.metrics(1, {{"train/toy/mean": 0.5}})
assert log.flush()
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert log.flush()
    assert history(MlflowClient(database), log.run_id, "train/toy/mean") == {1: 0.5}
    log.finish()


def test_copy_that_does_not_see_the_folder_sends_by_itself(database: str, tmp_path: Path) -> None:
    log = start(tmp_path / "run", database)
    copy = RunLog(log.run_id, log.uri, tmp_path / "folder of another machine")
    copy.metrics(1, {"train/toy/mean": 0.5})
    copy.image("validation", Image.new("RGB", (8, 8)), 1)
    assert copy.flush()
    log.finish()
    client = MlflowClient(database)
    assert history(client, log.run_id, "train/toy/mean") == {1: 0.5}
    assert image_keys(client, log.run_id) == [("validation", 1)]
    assert client.get_run(str(log.run_id)).data.params["optim.lr"] == "0.005"


@pytest.mark.slow
def test_metrics_arrive_while_the_run_goes_on(database: str, tmp_path: Path) -> None:
    log = start(tmp_path / "run", database)
    log.metrics(1, {"a": 1.0})
    client = MlflowClient(database)
    deadline = time.monotonic() + 20
    while not history(client, log.run_id, "a") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert history(client, log.run_id, "a") == {1: 1.0}
    log.finish()


def test_a_failing_job_is_shown_as_failed(database: str, tmp_path: Path) -> None:
    for error, status, shown in ((RuntimeError(), "failed", "FAILED"), (KeyboardInterrupt(), "interrupted", "KILLED")):
        with pytest.raises(type(error)), start(tmp_path / status, database) as log:
            raise error
        assert journal.read_json(tmp_path / status / "summary.json")["status"] == status
        assert MlflowClient(database).get_run(str(log.run_id)).info.status == shown


def test_a_file_that_is_gone_is_skipped_and_the_rest_sent(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start(tmp_path / "run", database) as log:
        log.artifact(tmp_path / "run" / "never-written.txt")
        (tmp_path / "run" / "folder").mkdir()
        (tmp_path / "run" / "folder" / "a.txt").write_text("a")
        log.artifact(tmp_path / "run" / "folder")
        log.finish()
    assert artifacts(MlflowClient(database), log.run_id) == ["folder", "summary.json"]
    assert "never-written.txt" in caplog.text
    with pytest.raises(ValueError, match="not in the output folder"):
        log.artifact(tmp_path / "elsewhere.txt")


def test_a_server_that_was_never_there(tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, complete files, quickly; `send` brings everything to another store, with its own times."""
    uri = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    log, embedding = run_everything(tmp_path / "run", uri)
    assert time.monotonic() - began < 15
    assert log.run_id is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    command = f"{program('renege-ray')} tracking send {tmp_path / 'run'} --tracking-uri {uri}"
    assert command in caplog.text
    assert command in log.review()
    assert len(list((tmp_path / "run" / "images").iterdir())) == 2

    time.sleep(1.1)
    assert main(["send", str(tmp_path / "run"), "--tracking-uri", database]) == 0
    log.run_id = journal.read_json(tmp_path / "run" / "summary.json")["mlflow_run_id"]
    run = check_everything(log, database, embedding)
    reported = [record["time"] for record, _ in journal.read(tmp_path / "run" / "metrics.jsonl")]
    sent = MlflowClient(database).get_metric_history(str(log.run_id), "train/toy/mean")
    assert [metric.timestamp for metric in sent] == reported
    assert run.info.start_time <= reported[0] <= reported[-1] <= run.info.end_time < time.time() * 1000 - 1000

    before = artifacts(MlflowClient(database), log.run_id, "images")
    assert main(["send", str(tmp_path / "run"), "--tracking-uri", database]) == 0
    assert artifacts(MlflowClient(database), log.run_id, "images") == before


def test_send_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tracking\.json"):
        main(["send", str(tmp_path)])
    journal.write_json(tmp_path / "tracking.json", {"tracking_uri": "http://***@host"})
    with pytest.raises(UserError, match="without its password"):
        main(["send", str(tmp_path)])
    with pytest.raises(UserError, match="nonsense"):
        main(["send", str(tmp_path), "--tracking-uri", "nonsense"])


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.mark.server
def test_a_run_on_a_real_server(
    server_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything is read back; then it is killed in the middle of a run, which goes on and is sent later."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with server(server_folder, port) as process:
        log, embedding = run_everything(tmp_path / "whole", uri)
        check_everything(log, uri, embedding)
        said = capfd.readouterr()
        assert said.out + said.err == "", "MLflow is not quiet"

        broken = start(tmp_path / "broken", uri)
        broken.metrics(0, {"odd": math.nan})
        report(broken, range(1, 4))
        assert broken.flush()
        assert math.isnan(history(MlflowClient(uri), broken.run_id, "odd")[0])
        kill(process)

        began = time.monotonic()
        report(broken, range(4, 8))
        broken.image("validation", Image.new("RGB", (8, 8)), 7)
        assert time.monotonic() - began < 1
        assert broken.flush() is False
        summary = broken.finish()
        assert time.monotonic() - began < 20
    assert summary["mlflow_run_id"] == broken.run_id
    assert len(caplog.records) == 1
    assert "tracking send" in broken.review()

    with server(server_folder, port):  # the same store comes back
        assert main(["send", str(tmp_path / "broken")]) == 0
        client = MlflowClient(uri)
        assert history(client, broken.run_id, "train/toy/mean") == {step: step / 10 for step in range(1, 8)}
        assert image_keys(client, broken.run_id) == [("validation", 7)]
        assert client.get_run(str(broken.run_id)).info.status == "FINISHED"
        assert f"{uri}/#/experiments/" in broken.review() and str(broken.run_id) in broken.review()


def test_a_child_run_stands_below_its_parent_in_every_store(tmp_path: Path, database: str) -> None:
    """Sent by the parent's thread as the run goes on, and to another store by one command."""
    parent = tmp_path / "sweep"
    with start(parent, database) as log:
        for number in (0, 1):
            child = log.child(parent / "trials" / f"{number}", job="sweep_trial", params={"optim": {"lr": number}})
            child.metrics(1, {"train/toy/mean": float(number)})
            child.image("validation", Image.new("RGB", (64, 48)), 1)
            child.finish("failed" if number else "finished", metrics={"train/toy/mean": float(number)})
        log.finish()
    assert journal.is_sent(parent / "trials" / "1") and "ui --backend-store-uri" in log.review()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for uri, run_id in ((database, log.run_id), (other, tracking.send(parent, other)[0])):
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("tests").experiment_id
        runs = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
        found = {run.info.run_name: run for run in runs}
        assert sorted(found) == ["0", "1"] and len(runs) == 2
        assert [found[name].info.status for name in "01"] == ["FINISHED", "FAILED"]
        assert found["1"].data.params["optim.lr"] == "1" and found["1"].data.metrics["train/toy/mean"] == 1.0
        assert image_keys(client, found["0"].info.run_id) == [("validation", 1)]
