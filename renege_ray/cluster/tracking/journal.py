"""What a run says about itself, on disk: files that outlive a killed process and an absent tracking server.

An output folder holds

    tracking.json   which MLflow run this folder belongs to, its parameters, and how much of the rest is sent
    metrics.jsonl   {"step", "time" (ms), "metrics": {name: value}}, a line per report
    uploads.jsonl   {"kind": "image" | "artifact" | "model", "path" (in the folder), ...}, a line per file
    summary.json    written once, at the end

and a sweep's folder holds such folders of its trials, two levels below, whose state file says `parent`.
They are the queue that the tracking server is fed from (`delivery.py`): nothing is lost while it is away.
"""

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from renege_ray.errors import UserError

STATE, METRICS, UPLOADS, SUMMARY = "tracking.json", "metrics.jsonl", "uploads.jsonl", "summary.json"

Record = dict[str, Any]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line with a single write, so that processes that append to one file do not mix their lines.

    Half a line left by a killed process is ended first: that line alone is lost.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(file, line)
    finally:
        os.close(file)


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """The records from byte `offset` on, each with the offset behind it.

    A last line without its end is left alone (it is torn, or still being written); a torn line that others
    follow is skipped. A missing file is an empty one.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record, offset


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step: a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Record:
    """The content of a JSON object file; {} where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return value


def encode_number(value: float) -> float | str:
    """A float for JSON, which knows no NaN and no infinity: those become "nan", "inf" and "-inf"."""
    return value if math.isfinite(value) else str(value)


def now() -> int:
    """Milliseconds since 1970, MLflow's time."""
    return int(time.time() * 1000)


def last_step(folder: Path) -> int:
    """The highest step that a run has told anything of; -1 where it has not come so far."""
    return max((record["step"] for record, _ in read(folder / METRICS)), default=-1)


def check_job(folder: Path, job: str) -> None:
    """Check that a folder, if it holds a run, holds one of this job. Raises UserError."""
    other = read_json(folder / STATE).get("job", job)
    if other != job:
        raise UserError(f"--output-dir: {folder} holds a run of {other}; name another folder")


def begin(
    folder: Path, job: str, experiment: str, params: Mapping[str, str], uri: str, parent: str | None = None
) -> None:
    """Write the state file of a run that begins in `folder`, or goes on there: then it stays the same run.

    Args:
        params: flat. uri: without credentials. parent: the folder of the run above this one, relative to `folder`.
    """
    old = read_json(folder / STATE)
    (folder / SUMMARY).unlink(missing_ok=True)  # the run is not over (any more)
    sent = old.get("sent", {})
    state = {
        "run_id": old.get("run_id"),
        "experiment_id": old.get("experiment_id"),
        "tracking_uri": uri,
        "experiment": old.get("experiment", experiment),
        "job": job,
        "run_name": old.get("run_name", folder.name),
        "start_time": old.get("start_time", now()),
        "params": params,
        "sent": {key: sent[key] for key in ("metrics", "uploads", "later", "refused") if key in sent},
    }
    write_json(folder / STATE, state | ({} if parent is None else {"parent": parent}))


def family(folder: Path) -> list[Path]:
    """An output folder, and those of its child runs."""
    return [folder, *sorted(path.parent for path in folder.glob(f"*/*/{STATE}"))]


def is_sent(folder: Path) -> bool:
    """Whether MLflow has got everything that is in an output folder, child runs apart, by the state file's marks."""
    sent = read_json(folder / STATE).get("sent", {})
    return (
        bool(sent.get("params"))
        and next(read(folder / METRICS, sent.get("metrics", 0)), None) is None
        and next(read(folder / UPLOADS, sent.get("uploads", 0)), None) is None
        and not sent.get("later")
        and sent.get("status") == read_json(folder / SUMMARY).get("status")
    )


def refused(folder: Path) -> dict[str, str]:
    """What the store will never take of an output folder, and why."""
    return dict(read_json(folder / STATE).get("sent", {}).get("refused", {}))


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Whether this process (and thread) alone sends `folder` now; released with the process."""
    file = os.open(folder / ".tracking.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(file)
