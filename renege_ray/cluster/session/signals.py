"""Ctrl-C, SIGTERM and SIGHUP as a request to stop soon, instead of an end in the middle of something."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from renege_ray.config.program import stop_signals
from renege_ray.errors import describe

T = TypeVar("T")

# What stops jobs on a cluster kills them half a minute after it has asked; what is left of that is for the summary, the
# tracking store and Ray's own end. Work that is asked to stop usually needs a second.
PATIENCE_SECONDS = 12.0
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_LINES = 1.0  # to ask another process for them takes CPU that is the work's
# Whoever signals a process and then its whole group (`timeout` does) means it once.
_SECONDS_OF_ONE_REQUEST = 1.0
# A signal to all processes of a job reaches Ray's processes before the handler of this one has run.
_SECONDS_FOR_A_SIGNAL = 1.0


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process ended by the signal; 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal.value


class Abandoned(RuntimeError):
    """The work was left alone: it did not stop when it was asked to, or what it runs on is gone.

    What it has kept on disk is what there is of it. The message says why.
    """


def run_until_stopped(
    work: Callable[[], T],
    on_stop: Callable[[], None],
    request: StopRequest,
    meanwhile: Callable[[], None],
    lost: Callable[[], str] = lambda: "",
    patience: float = PATIENCE_SECONDS,
) -> T:
    """Run `work` in a thread; call `on_stop` once when a signal asks to stop, and `meanwhile` now and then.

    A second signal ends the process. Signal handlers run in the main thread only, and Ray Train would
    otherwise take SIGINT for itself and abort without a checkpoint. Called outside of the main thread, no
    signals are handled.

    Args:
        lost: what the work runs on and has lost, if it has.
        patience: seconds that the work is given to end after it was asked to stop.

    Raises:
        Abandoned: it did not end within its time, something is lost, or it failed after a signal, which may have
            reached what it runs on.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    asked = float("inf")

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if request.signal is None:
            request.signal, asked = signal.Signals(number), time.monotonic()
        elif time.monotonic() - asked > _SECONDS_OF_ONE_REQUEST:
            raise SystemExit(128 + number)

    previous = {number: signal.signal(number, handle) for number in stop_signals()}
    thread = threading.Thread(target=target, name="work", daemon=True)
    deadline, lost_since, next_lines = float("inf"), float("inf"), 0.0
    try:
        thread.start()
        while thread.is_alive():
            thread.join(timeout=_SECONDS_BETWEEN_LOOKS)
            if request.signal is not None and deadline == float("inf"):
                deadline = time.monotonic() + patience
                on_stop()
            now, loss = time.monotonic(), lost()
            lost_since = min(lost_since, now) if loss else float("inf")
            if now - lost_since > _SECONDS_FOR_A_SIGNAL:
                raise Abandoned(loss)
            if now > deadline:
                raise Abandoned(f"the work did not stop within {patience:g} s")
            if not loss and now >= next_lines:
                meanwhile()
                next_lines = now + _SECONDS_BETWEEN_LINES
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if failure and request.signal is not None:
        raise Abandoned(describe(failure[0])) from failure[0]
    if failure:
        raise failure[0]
    return outcome[0]
