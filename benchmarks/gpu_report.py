"""What a benchmark in parts has found so far: on the disk after every part, in time, whatever becomes of a part."""

import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from renege_ray.errors import describe
from renege_ray.output.whole_files import whole_file

Figures = dict[str, Any]
DONE, NOT_RUN, NO_TIME, CUT_OFF, NO_MEMORY = "done", "not run", "not run (time)", "cut off (time)", "out of memory"
NAME = "gpu"  # of the files


@dataclass(frozen=True)
class Part:
    """Something to measure."""

    name: str
    about: str
    needs: float
    """Seconds without which it is not begun."""
    run: Callable[[], Figures]


@dataclass(frozen=True)
class Goal:
    """What a figure should be at least."""

    about: str
    aim: float
    found: Callable[[dict[str, Figures]], float | None]
    """From {part: figures}; None where what it takes has not been run."""


class Report:
    """The figures of all parts, as JSON and as one Markdown table."""

    def __init__(self, folder: Path, facts: Figures, parts: Sequence[Part], goals: dict[str, Goal]) -> None:
        """`facts`: of the machine and the libraries."""
        self._folder, self._facts, self._goals = folder, facts, goals
        self.parts: dict[str, Figures] = {part.name: {"about": part.about, "status": NOT_RUN} for part in parts}
        self.write()

    def note(self, part: str, status: str, figures: Figures | None = None) -> None:
        """Say what became of a part, and write everything."""
        self.parts[part] |= {"status": status, **(figures or {})}
        self.write()

    def goals(self) -> dict[str, Figures]:
        """{goal: about, aim, found, met}; found and met are None where it has not been run."""
        told = {}
        for name, goal in self._goals.items():
            found = goal.found(self.parts)
            met = None if found is None else found >= goal.aim
            told[name] = {"about": goal.about, "aim": goal.aim, "found": found, "met": met}
        return told

    def write(self) -> None:
        """Both files, whole."""
        content = {**self._facts, "parts": self.parts, "goals": self.goals()}
        for suffix, text in (("json", json.dumps(content, indent=1) + "\n"), ("md", self.markdown())):
            with whole_file(self._folder / f"{NAME}.{suffix}") as path:
                path.write_text(text, encoding="utf-8")

    def markdown(self) -> str:
        """The table, between what it was measured on and the goals."""
        facts = ", ".join(f"{name} {value}" for name, value in self._facts.items())
        columns = {
            "micro-batch": "micro_batch",
            "gradients/s": "gradients_per_s",
            "rollouts/s": "rollouts_per_s",
            "prompts/s": "prompts_per_s",
            "TFLOP a gradient": "tflop_per_gradient",
            "TFLOP/s": "tflop_per_s",
            "of the peak": "share_of_peak",
            "memory, GiB": "peak_gib",
            "planned": "planned_gib",
            "first update, s": "first_s",
            "times ReFL": "times_refl",
            "times one by one": "times_one_by_one",
        }
        lines = [facts, "", "| what | status | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 2) + "|"]
        for part in self.parts.values():
            cells = (_shown(part.get(key)) for key in columns.values())
            lines.append(f"| {part['about']} | {part['status']} | " + " | ".join(cells) + " |")
        lines.append("")
        for goal in self.goals().values():
            met = {None: "not run", True: "met", False: "not met"}[goal["met"]]
            lines.append(f"- {goal['about']}: {_shown(goal['found']) or '-'} (aim: {goal['aim']:g}; {met})")
        return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}"


class _OutOfTime(BaseException):
    """No `Exception`: nothing between a part and its end takes it for a fault to recover from."""


def run_parts(report: Report, parts: Sequence[Part], seconds: float, say: Callable[[str], None]) -> bool:
    """Run the parts in order, within so many seconds in all; returns whether none of them failed.

    A part that would not fit into what is left is not begun, one that takes longer is cut off, and one that raises or
    runs out of memory costs its own figures only.
    """
    end, sound = time.monotonic() + seconds, True
    for part in parts:
        left = end - time.monotonic()
        if left <= part.needs:
            report.note(part.name, NO_TIME)
            say(f"{part.name}: {NO_TIME}, {left:.0f} s left")
            continue
        started, figures = time.monotonic(), None
        try:
            with _alarm(left):
                figures, status = part.run(), DONE
        except _OutOfTime:
            status = CUT_OFF
        except torch.OutOfMemoryError:
            status = NO_MEMORY
        except Exception as error:
            traceback.print_exc()
            status, sound = f"failed: {describe(error)}", False
        report.note(part.name, status, {"seconds": time.monotonic() - started, **(figures or {})})
        say(f"{part.name}: {status}, {time.monotonic() - started:.1f} s {_brief(figures or {})}")
        free_memory()
    return sound


def free_memory() -> None:
    """What nothing refers to any more goes back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _brief(figures: Figures) -> str:
    return " ".join(f"{name}={_shown(value)}" for name, value in figures.items() if isinstance(value, int | float))


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
