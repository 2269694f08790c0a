"""Notes between a driver and its workers: lines one way, the request to stop the other.

They lie in a small actor on the driver's machine. It takes no CPU from the workers, is known to those alone that are
given the mailbox, and ends with the process that made it. Lines arrive as they are, without what Ray's forwarding of
worker output puts around them. No call raises, and none waits for long: where the actor is gone, notes are lost and the
work goes on.
"""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_PATIENCE_SECONDS = 2.0
_MOMENT_SECONDS = 0.1
# An answer costs a millisecond or two of CPU on both sides, which are the work's.
_SECONDS_BETWEEN_LOOKS = 1.0


class _Notes:
    """The actor."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._stop = False
        self._reason = ""

    def post(self, line: str) -> None:
        self._lines.append(line)

    def lines(self, first: int) -> list[str]:
        return self._lines[first:]

    def request_stop(self) -> None:
        self._stop = True

    def stop_requested(self) -> bool:
        return self._stop

    def give_up(self, reason: str) -> None:
        self._reason = self._reason or reason

    def reason(self) -> str:
        return self._reason


class Mailbox:
    """Made by the driver, and handed to its workers, also to those that replace others."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._notes: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Notes).remote()
        self._taken = 0
        self._answer: Any = None

    def post(self, line: str) -> None:
        """Worker: leave a line for the driver, behind all that are there. It is there when this returns."""
        self._ask("post", line)

    def take(self) -> list[str]:
        """Driver: the lines that have come since the last call."""
        lines: list[str] = self._ask("lines", self._taken) or []
        self._taken += len(lines)
        return lines

    def request_stop(self) -> None:
        """Driver: ask the workers to stop after their current step, with a checkpoint."""
        self._ask("request_stop")

    def stop_requested(self) -> bool:
        """Worker: whether the driver has asked. An answer that takes longer than a moment is for the next call."""
        with suppress(RayError):
            self._answer = self._answer or self._notes.stop_requested.remote()
            if ray.wait([self._answer], timeout=_MOMENT_SECONDS)[0]:
                answer, self._answer = self._answer, None
                return bool(ray.get(answer))
        return False

    def give_up(self, reason: str) -> None:
        """Worker: note for all, and for those that replace them, why no restart would help. The first reason stays."""
        self._ask("give_up", reason)

    def reason_to_give_up(self) -> str:
        """Worker: what another one has noted; "" if nothing."""
        return self._ask("reason") or ""

    def close(self) -> None:
        """Driver: remove all notes in the end; the cluster may live on."""
        with suppress(RayError):
            ray.kill(self._notes)

    def _ask(self, method: str, *arguments: object) -> Any:
        """The actor's answer, or None."""
        with suppress(RayError):
            return ray.get(getattr(self._notes, method).remote(*arguments), timeout=_PATIENCE_SECONDS)
        return None


class StopWatch:
    """Whether the driver has asked to stop; once it has, for good."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._next_look = 0.0
        self.stopping = False

    def __call__(self) -> bool:
        """Cheap enough to be asked before every micro-batch."""
        if not self.stopping and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            self.stopping = self._mailbox.stop_requested()
        return self.stopping
