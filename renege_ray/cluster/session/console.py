"""What a user reads while Ray works: our own lines. Ray's go to a file, and a lost machine is told in one of ours."""

import io
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import worker

from renege_ray.output.console import say

LOG_FILE = "ray.log"
_STDERR = 2
_SECONDS_BETWEEN_LOOKS = 2.0


@contextmanager
def ray_log(path: Path) -> Iterator[None]:
    """Send what Ray tells the console to a file, for the length of the block; an empty one is removed.

    Ray's native parts write to the process's stderr whatever the level of Ray's loggers is, and its driver prints what
    the daemons of other machines report, their state dumps included; no setting of Ray's ends either. So the file
    descriptor goes to the file, and Python's `sys.stderr` keeps the console.
    """
    if not _is_console(sys.stderr):
        yield
        return
    kept = os.dup(_STDERR)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    before, print_before = sys.stderr, worker.print_to_stdstream

    def to_file(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
        with suppress(OSError):
            os.write(_STDERR, "".join(f"{line}\n" for line in data["lines"]).encode())

    before.flush()
    os.dup2(file, _STDERR)
    sys.stderr = io.TextIOWrapper(
        os.fdopen(kept, "wb", closefd=False), before.encoding, "backslashreplace", line_buffering=True
    )
    worker.print_to_stdstream = to_file
    try:
        yield
    finally:
        worker.print_to_stdstream = print_before
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        sys.stderr = before
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(file)
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _is_console(stream: Any) -> bool:
    """Whether a stream is this process's own stderr, not what a notebook or a test has put in its place."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == _STDERR
    except (OSError, ValueError):
        return False


class MachineWatch:
    """Says which machine of a cluster is lost; a thread, since Ray's answer may take as long as it likes."""

    def __init__(self) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._look, name="machine-watch", daemon=True).start()

    def close(self) -> None:
        """End the thread, after what it waits for now."""
        self._over.set()

    def _look(self) -> None:
        known: dict[str, str] = {}
        with suppress(Exception):  # of a Ray that is gone, too: others tell that
            while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
                nodes = ray.nodes()
                alive = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in nodes if node["Alive"]}
                if self._over.is_set():
                    return
                for node in known.keys() - alive.keys():
                    say(f"machine {known[node]} is lost, {len(alive)} left: what is kept of its work goes on elsewhere")
                known = alive
