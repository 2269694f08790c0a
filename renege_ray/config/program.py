"""How every program of the package begins and ends: its console, its signals, its exit code."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Never

from renege_ray.errors import UserError, full_line, is_full
from renege_ray.output.console import leave_console, prepare_console, say

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_at_once = threading.Event()


def run_job(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> Never:
    """Call `main` with the command line and exit with its code (None is 0).

    Bad input is one line on stderr and exit code 2; a full disk is one line and 1; Ctrl-C, SIGTERM and SIGHUP are one
    line and 128 + the signal. A bug keeps its traceback.
    """
    prepare_console()
    previous = {number: signal.signal(number, _exit) for number in stop_signals()}
    # What transformers has to say of image processors that nothing here uses would drown the job's own lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = main(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        say(f"error: {' '.join(str(error).splitlines())}", error=True)
        code = 2
    except (_Stopped, KeyboardInterrupt) as stop:
        say("interrupted; --resume OUTPUT_DIR goes on from the last checkpoint, if there is one", error=True)
        code = stop.number if isinstance(stop, _Stopped) else 128 + signal.SIGINT
    except Exception as error:
        if not is_full(error):
            raise
        say(f"stopped: {full_line(error)}", error=True)
        code = 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    leave_console()
    if _at_once.is_set():
        os._exit(code)
    sys.exit(code)


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks this process to stop: Ctrl-C, what ends jobs on a cluster, and a terminal that was closed, unless nohup
    keeps that away. Handlers are for the main thread alone: elsewhere there are none.
    """
    if threading.current_thread() is not threading.main_thread():
        return ()
    kept_away = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in _STOP_SIGNALS if number != signal.SIGHUP or not kept_away)


def leave_at_once() -> None:
    """Let the program end without waiting for threads and exit handlers: they wait for something that is gone."""
    _at_once.set()


class _Stopped(SystemExit):
    """A signal came while no work that could be asked to stop was going on."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = 128 + number


def _exit(number: int, frame: FrameType | None) -> Never:
    raise _Stopped(number)
