"""Ctrl-C and SIGTERM as a request to stop at the next step, instead of an end in the middle of one."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process ended by the signal; 0 if there was none."""
        return 0 if self.signal is None else 128 + self.signal.value


def run_until_stopped(
    work: Callable[[], T], on_stop: Callable[[], None], request: StopRequest, meanwhile: Callable[[], None]
) -> T:
    """Run `work` in a thread; call `on_stop` once when a signal asks to stop, and `meanwhile` now and then.

    A second signal ends the process. Signal handlers run in the main thread only, and Ray Train would
    otherwise take SIGINT for itself and abort without a checkpoint. Called outside of the main thread, no
    signals are handled.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise SystemExit(128 + number)
        request.signal = signal.Signals(number)

    main = threading.current_thread() is threading.main_thread()
    handled = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {number: signal.signal(number, handle) for number in handled}
    thread = threading.Thread(target=target, name="training", daemon=True)
    told = False
    try:
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.2)
            meanwhile()
            if request.signal is not None and not told:
                told = True
                on_stop()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if failure:
        raise failure[0]
    return outcome[0]
