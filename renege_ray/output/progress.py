"""One line now and then: where the work is, what it gained, how fast it is, and when it will be done."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """Seconds as H:MM:SS or M:SS."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Counter:
    """Told of what is done in pieces; at most one line in `every` seconds says how much that is, and when all will be.

    Nothing is said of what takes no longer than that.
    """

    def __init__(
        self,
        total: int,
        what: str,
        say: Callable[[str], None],
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._what, self._say, self._every, self._clock = total, what, say, every, clock
        self._done, self._started = 0, clock()
        self._last = self._started

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done, now = self._done + count, self._clock()
        if now - self._last >= self._every and self._done < self._total:
            self._last = now
            left = (now - self._started) / self._done * (self._total - self._done)
            self._say(f"{self._what} {self._done}/{self._total}  ETA {duration(left)}")


def counted(
    items: Sequence[T],
    what: str,
    say: Callable[[str], None],
    every: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """The items; at most one line in `every` seconds says how many are done and when all will be."""
    counter = Counter(len(items), what, say, every, clock)
    for item in items:
        yield item
        counter.add(1)


class ProgressLine:
    """Makes at most one line in `every` seconds, and one for each validation.

    The time that is left is judged by the steps that this process has made, validations included.
    """

    def __init__(
        self, total_steps: int, first_step: int = 0, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._first, self._every, self._clock = total_steps, first_step, every, clock
        self._started = self._last = clock()

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """The lines to print after `step` steps: none, or one."""
        now = self._clock()
        validated = "eval/global/reward/mean" in metrics
        if not (validated or step == self._total or now - self._last >= self._every):
            return []
        self._last = now
        pieces = [f"step {step:>{len(str(self._total))}}/{self._total}"]
        pieces += [
            f"{label} {metrics[name]:{form}}"
            for label, name, form in (
                ("reward", "train/reward", ".4f"),
                ("|g|", "train/grad_norm", ".2e"),
                ("drift", "train/drift", ".4f"),
                ("samples/s", "perf/samples_per_second", ".1f"),
            )
            if name in metrics
        ]
        done = step - self._first
        if done == 0:
            self._started = now  # what came before (baselines) is not repeated
        else:
            pieces.append(f"ETA {duration((now - self._started) / done * (self._total - step))}")
        if validated:
            pieces.append(_validation(metrics))
        return ["  ".join(pieces)]


def _validation(metrics: Mapping[str, float]) -> str:
    """Mean rewards on the validation pairs: null, handwritten, global."""
    means = [
        f"{method} {metrics[name]:.4f}"
        for method in ("null", "handwritten", "global")
        if (name := f"eval/{method}/reward/mean") in metrics
    ]
    return f"validation reward: {', '.join(means)}"
