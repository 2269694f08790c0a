"""Notes between the driver and rank 0 while Ray Train runs: progress lines one way, the request to stop the
other.

They go through the key-value store that every Ray cluster has, so they need no shared folder and no process
of their own; and the lines arrive as they are, without what Ray's forwarding of worker output puts around
them.
"""

import time

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

_NAMESPACE = b"renege_ray"
_SECONDS_BETWEEN_LOOKS = 0.5


class Mailbox:
    """The notes of one attempt of one run; both sides make one of the same `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = 0

    def post(self, line: str) -> None:
        """Rank 0: leave a line for the driver, behind those of a worker group that this one replaces."""
        while self._get(f"line/{self._next}") is not None:
            self._next += 1
        self._put(f"line/{self._next}", line)
        self._next += 1

    def take(self) -> list[str]:
        """Driver: the lines that have come since the last call."""
        lines = []
        while (line := self._get(f"line/{self._next}")) is not None:
            lines.append(line)
            self._next += 1
        return lines

    def request_stop(self) -> None:
        """Driver: ask the workers to stop after their current step, with a checkpoint."""
        self._put("stop", "1")

    def stop_requested(self) -> bool:
        """Rank 0: whether the driver has asked."""
        return self._get("stop") is not None

    def clear(self) -> None:
        """Driver: remove all notes in the end; the cluster may live on."""
        _internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _get(self, note: str) -> str | None:
        found = _internal_kv_get(self._key(note), namespace=_NAMESPACE)
        return None if found is None else found.decode()

    def _put(self, note: str, text: str) -> None:
        _internal_kv_put(self._key(note), text.encode(), namespace=_NAMESPACE)

    def _key(self, note: str) -> bytes:
        return f"{self._name}/{note}".encode()


class StopWatch:
    """Whether the driver has asked to stop; once it has, for good. In a group of workers rank 0 looks, now and then,
    and its answer reaches the others in their next sum.
    """

    def __init__(self, mailbox: Mailbox, rank: int = 0) -> None:
        self._mailbox, self._rank = mailbox, rank
        self._next_look = 0.0
        self.stopping = False

    def __call__(self) -> bool:
        """Cheap enough to be asked before every step."""
        if self._rank == 0 and not self.stopping and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
            self.stopping = self._mailbox.stop_requested()
        return self.stopping
