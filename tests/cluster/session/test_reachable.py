"""A Ray that cannot be started or reached is told in one line that says what to set, and soon."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from renege_ray.cluster.session.reachable import check_address, check_temporary_folder, provide_token, why_silent
from renege_ray.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def web_server() -> Iterator[int]:
    """Such as Ray's dashboard, or MLflow."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Somebody who takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8265", "https://ray.example.com", "127.0.0.1", "nonsense", "127.0.0.1:x", "a:99999999"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match=r"^RAY_ADDRESS: .*unset it") as refusal:
        check_address(address)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_no_cluster_answers(form: str, closed_port: int, web_server: int, silent_port: int) -> None:
    started = time.monotonic()
    for port in (closed_port, web_server, silent_port):
        with pytest.raises(UserError, match=r"no Ray cluster answers at .*\(.+\); start one"):
            check_address(form.format(port))
    with pytest.raises(UserError, match="no Ray cluster answers"):
        check_address("no-such-host.invalid:6379")
    assert time.monotonic() - started < 15
    check_address("auto")


def test_temporary_folders_that_ray_cannot_use(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    with pytest.raises(UserError, match=r"^TMPDIR: .* too long .*set RAY_TMPDIR to a shorter one"):
        check_temporary_folder({"TMPDIR": str(long)})
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: .* too long"):
        check_temporary_folder({"TMPDIR": "/tmp", "RAY_TMPDIR": str(long)})
    with pytest.raises(UserError, match=r"^RAY_TMPDIR: /proc/ray, .*cannot be written"):
        check_temporary_folder({"RAY_TMPDIR": "/proc"})
    occupied = Path("/tmp") / f"occupied-{os.getpid()}"  # short enough
    occupied.mkdir()
    (occupied / "ray").write_text("a file in the way")
    try:
        with pytest.raises(UserError, match=r"cannot be written.*set RAY_TMPDIR"):
            check_temporary_folder({"TMPDIR": str(occupied)})
    finally:
        (occupied / "ray").unlink()
        occupied.rmdir()
    check_temporary_folder({"TMPDIR": "/tmp"})


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ  # Ray keeps one there
    monkeypatch.setenv("HOME", "/proc/no/home")
    provide_token()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 32
    provide_token()
    assert os.environ.pop("RAY_AUTH_TOKEN") == token


@pytest.mark.slow
def test_the_whole_command_says_one_line(tmp_path: Path, closed_port: int) -> None:
    """Before models are loaded, and without a folder."""
    for setting in ({"RAY_ADDRESS": f"127.0.0.1:{closed_port}"}, {"RAY_TMPDIR": "/" + "x" * 99}):
        command = [sys.executable, str(ROOT / "jobs" / "train_global.py"), "--output-dir", str(tmp_path / "run")]
        process = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True, cwd=tmp_path)
        assert process.returncode == 2, process.stderr
        assert len(process.stderr.splitlines()) == 1 and process.stderr.startswith("error: RAY_")
        assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_real_cluster_answers(ray_cluster: str) -> None:
    host, _, port = ray_cluster.rpartition(":")
    assert why_silent(host, int(port)) == ""
    check_address(ray_cluster)
