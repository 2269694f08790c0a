"""However a job is asked to stop, it ends soon, with the work's own end where there is time for it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from renege_ray.cluster.session.signals import Abandoned, StopRequest, run_until_stopped
from renege_ray.config.program import stop_signals

ROOT = Path(__file__).resolve().parents[3]


def send_soon(number: int, seconds: float = 0.3) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()


def forever() -> None:
    time.sleep(60)


def nothing() -> None:
    pass


@pytest.mark.parametrize("number", stop_signals())
def test_work_that_stops_when_it_is_asked_to_has_its_own_end(number: signal.Signals) -> None:
    asked, request = threading.Event(), StopRequest()

    def work() -> str:
        assert asked.wait(10)
        return "the end"

    before = signal.getsignal(number)
    send_soon(number)
    assert run_until_stopped(work, asked.set, request, meanwhile=nothing) == "the end"
    assert request.signal == number and request.exit_code == 128 + number
    assert signal.getsignal(number) == before


def fail_later() -> None:
    time.sleep(0.8)
    raise ConnectionError("the machine below is gone")


@pytest.mark.parametrize(
    "work, lost, why",
    [
        (forever, lambda: "", "did not stop within 1 s"),
        (fail_later, lambda: "", "ConnectionError: the machine below is gone"),
        (forever, lambda: "Ray's raylet on this machine has ended", "raylet"),
    ],
)
def test_work_that_does_not_is_left_alone(work: Callable[[], None], lost: Callable[[], str], why: str) -> None:
    request, started = StopRequest(), time.monotonic()
    send_soon(signal.SIGTERM)
    with pytest.raises(Abandoned, match=why):
        run_until_stopped(work, nothing, request, meanwhile=nothing, lost=lost, patience=1.0)
    assert request.signal == signal.SIGTERM and time.monotonic() - started < 5


def test_without_a_signal_a_loss_ends_the_wait_and_a_failure_is_told() -> None:
    request = StopRequest()
    with pytest.raises(Abandoned, match="gone"):
        run_until_stopped(forever, nothing, request, meanwhile=nothing, lost=lambda: "gone")
    with pytest.raises(ConnectionError):
        run_until_stopped(fail_later, nothing, request, meanwhile=nothing)
    assert request.signal is None and request.exit_code == 0


def test_a_second_signal_ends_the_process_at_once() -> None:
    send_soon(signal.SIGINT, 0.3)
    send_soon(signal.SIGINT, 0.5)  # the same request: `timeout` signals a process, and then its group
    send_soon(signal.SIGTERM, 1.8)
    with pytest.raises(SystemExit) as end:
        run_until_stopped(forever, nothing, StopRequest(), meanwhile=nothing, patience=30.0)
    assert end.value.code == 128 + signal.SIGTERM


PROGRAM = """
import sys, time
from renege_ray.config.program import run_job
def main(argv):
    try:
        print("begun", flush=True)
        time.sleep(30)
    finally:
        print("cleaned up", flush=True)
run_job(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", stop_signals())
def test_where_nothing_can_be_asked_a_signal_ends_the_program_cleanly(number: signal.Signals) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert out == "cleaned up\n" and len(error.splitlines()) == 1 and "interrupted" in error


@pytest.mark.slow
def test_a_closed_terminal_does_not_end_what_nohup_started() -> None:
    command = ["nohup", sys.executable, "-c", PROGRAM.replace("30", "2")]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == "cleaned up\n"
    assert process.returncode == 0
