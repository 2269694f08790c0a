"""Jobs in processes of their own, and how to find and kill what they have started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Processes = dict[int, tuple[int, str]]


def processes() -> Processes:
    """{process: (its parent, its command)} of this machine."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                stat = (entry / "stat").read_text()
                found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1]), command
        except (OSError, ValueError):
            continue
    return found


def below(ancestor: int, named: Sequence[str]) -> list[int]:
    """The descendants of a process whose command holds one of the names."""
    found = processes()

    def descends(pid: int) -> bool:
        while pid in found and pid != ancestor:
            pid = found[pid][0]
        return pid == ancestor

    return [pid for pid, (_, command) in found.items() if descends(pid) and any(name in command for name in named)]


@contextmanager
def job(
    name: str, flags: Sequence[str], folder: Path, address: str = "", patience: int = 3
) -> Iterator[subprocess.Popen[str]]:
    """The job in its own process, on a cluster or with one of its own; neither process nor own cluster outlives it.

    `patience`: seconds that a driver waits for a cluster that is gone, before Ray ends it; Ray's own number is 60.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if address:
        environment["RAY_ADDRESS"] = address
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = str(patience)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
    output = folder.with_suffix(".log").open("a")
    process = subprocess.Popen(command, env=environment, cwd=folder.parent, stdout=output, stderr=output, text=True)
    try:
        yield process
    finally:
        leftovers = below(process.pid, [""])
        process.kill()
        process.wait()
        for pid in leftovers:
            with_signal(pid, signal.SIGKILL)


def with_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 300) -> None:
    """Wait until something is so, while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the job ended before it was killed"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
