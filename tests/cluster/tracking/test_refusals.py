"""A real server behind a proxy that refuses some things: the rest arrives, and what is refused is named."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from renege_ray.cluster.tracking import journal
from renege_ray.cluster.tracking.command import main
from renege_ray.cluster.tracking.run_log import RunLog
from renege_ray.cluster.tracking.runs import open_run
from tests.mlflow_server import free_port, server

pytestmark = pytest.mark.server


class Gate:
    """A proxy on the loopback address. `refuses`: {part of a path: status}, which wins over the server's answer."""

    def __init__(self, target: str) -> None:
        self.refuses: dict[str, int] = {}
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = next((status for part, status in gate.refuses.items() if part in self.path), None)
                if status is None:
                    headers = {name: value for name, value in self.headers.items() if name != "Host"}
                    found = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=30)
                    status, content = found.status_code, found.content
                else:
                    content = b"<html>refused by the gate</html>"
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    with server(tmp_path_factory.mktemp("server"), port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def gate(target: str) -> Iterator[Gate]:
    made = Gate(target)
    yield made
    made.close()


@contextmanager
def run(folder: Path, uri: str, experiment: str = "tests") -> Iterator[RunLog]:
    params = {"a": 1, "b": 2}
    with open_run(folder, job="train_global", experiment=experiment, params=params, tracking_uri=uri) as log:
        yield log


def write(log: RunLog, *names: str) -> None:
    for name in names:
        (log.output_dir / name).write_text(name)
        log.artifact(log.output_dir / name)


def artifacts(uri: str, log: RunLog) -> list[str]:
    return sorted(info.path for info in MlflowClient(uri).list_artifacts(str(log.run_id)))


@pytest.mark.parametrize("status", [413, 400, 415])
def test_what_can_never_arrive_keeps_nothing_back(
    gate: Gate,
    target: str,
    tmp_path: Path,
    status: int,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    gate.refuses = {"large.bin": status}
    with run(tmp_path / "run", gate.uri) as log:
        write(log, "before.txt", "large.bin", "behind.txt")
        log.metrics(1, {"x": 1.0})
        log.finish()
    assert artifacts(target, log) == ["before.txt", "behind.txt", "summary.json"]
    assert MlflowClient(target).get_run(str(log.run_id)).info.status == "FINISHED"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "large.bin" in warning and str(status) in warning and "does not answer" not in warning
    assert "without large.bin" in log.review()
    assert main(["send", str(tmp_path / "run")]) == 0
    assert "refuses it: large.bin" in capfd.readouterr().err


@pytest.mark.parametrize("status", [403, 500])
def test_what_may_arrive_later_is_put_off(gate: Gate, target: str, tmp_path: Path, status: int) -> None:
    gate.refuses = {"odd.bin": status}
    with run(tmp_path / "run", gate.uri) as log:
        write(log, "odd.bin", "behind.txt")
        log.finish()
        assert artifacts(target, log) == ["behind.txt", "summary.json"]
        assert "has not got everything" in log.review()
    assert main(["send", str(tmp_path / "run")]) == 1
    gate.refuses = {}
    assert main(["send", str(tmp_path / "run")]) == 0
    assert artifacts(target, log) == ["behind.txt", "odd.bin", "summary.json"]


@pytest.mark.parametrize("status", [401, 503])
def test_a_store_that_lets_nobody_in_is_asked_again(
    gate: Gate, target: str, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    gate.refuses = {"/api/": status}
    with run(tmp_path / "run", gate.uri) as log:
        write(log, "a.txt")
        log.finish()
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"answers {status}" in warning and "does not answer" not in warning
    assert ("MLFLOW_TRACKING_USERNAME" in warning) == (status == 401)
    gate.refuses = {}
    assert main(["send", str(tmp_path / "run")]) == 0
    log.run_id = journal.read_json(tmp_path / "run" / journal.STATE)["run_id"]
    assert artifacts(target, log) == ["a.txt", "summary.json"]


def test_metrics_that_are_refused_keep_no_others_back(gate: Gate, target: str, tmp_path: Path) -> None:
    """A batch that is too large for a gate goes one by one."""
    gate.refuses = {"log-batch": 413}
    with run(tmp_path / "run", gate.uri) as log:
        log.metrics(1, {"x": 1.0})
        write(log, "a.txt")
        log.finish()
    assert artifacts(target, log) == ["a.txt", "summary.json"]
    assert {"metric x", "parameter a", "parameter b"} <= set(journal.refused(tmp_path / "run"))


def test_a_deleted_experiment_is_restored(target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with run(tmp_path / "first", target, "precious") as first:
        first.finish()
    client = MlflowClient(target)
    experiment = client.get_run(str(first.run_id)).info.experiment_id
    client.delete_experiment(experiment)
    with run(tmp_path / "second", target, "precious") as second:
        second.metrics(1, {"x": 1.0})
        second.finish()
    assert client.get_experiment(experiment).lifecycle_stage == "active"
    assert client.get_run(str(second.run_id)).info.experiment_id == experiment
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "'precious' had been deleted in MLflow; it is restored" in warning

    client.delete_run(str(second.run_id))  # and a run that was deleted is sent anew
    with run(tmp_path / "second", target, "precious") as again:
        again.finish()
    assert again.run_id != second.run_id and client.get_run(str(again.run_id)).data.metrics == {"x": 1.0}
