"""The output folder of a run: one run, one folder; and the summary of jobs that track nothing."""

import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from renege_ray.errors import UserError
from renege_ray.output.hold import check_not_held
from renege_ray.output.whole_files import whole_file

CONFIG_FILE = "config.yaml"  # what was run; a folder that has it holds a run
IDENTITY_FILE = "run.id"  # the name of the run, the same wherever its folder is moved to
EMBEDDING_FILE = "negative_embedding.safetensors"  # what a training or a sweep has learned


def check_output_dir(folder: Path, *, resume: bool) -> None:
    """Judge the folder without making it.

    Raises:
        UserError: it cannot be written; a run is going on there; it holds another run already, or none where one is to
            be resumed.
    """
    try:
        folder.exists()
    except OSError as error:  # a name that is too long, say
        raise UserError(f"--output-dir: {folder} cannot be made ({error.strerror}); name another folder") from None
    check_not_held(folder, "--resume" if resume else "--output-dir")
    has_run = (folder / CONFIG_FILE).exists()
    if resume and not folder.is_dir():
        raise UserError(f"--resume: there is no folder {folder}; name the output folder of the run to go on with")
    if resume and not has_run:
        raise UserError(f"--resume: {folder} holds no run ({CONFIG_FILE} is missing); name a run's output folder")
    if not resume and has_run:
        raise UserError(
            f"--output-dir: {folder} already holds a run; go on with it by --resume {folder}, or name another folder"
        )
    check_writable(folder)


def check_writable(folder: Path, field: str = "--output-dir") -> None:
    """Check that a folder can be written to, or made, without making it. Raises UserError naming the field."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{field}: {folder} is a file; name a folder")
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "is not writable" if parent.is_dir() else "is a file"
        raise UserError(f"{field}: {folder} cannot be made, since {parent} {why}; name another folder")
    _try_a_write(parent, field)


def make_output_dir(folder: Path, *, resume: bool = False) -> Path:
    """Make the folder."""
    check_output_dir(folder, resume=resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir: {folder} cannot be made ({error.strerror}); name another folder") from None
    _try_a_write(folder)
    return folder


def identify(folder: Path) -> str:
    """The name of the run in a folder, such as run-1f0c9a3e: unique, and written there at its start.

    What a run keeps elsewhere goes by this name, never by the folder's path: links, moves and other spellings change
    nothing. It has only letters that need no quotes in a URI.
    """
    path = folder / IDENTITY_FILE
    if not path.exists():
        readable = re.sub(r"[^A-Za-z0-9_]+", "-", folder.name).strip("-")[:40] or "run"
        write_text(path, f"{readable}-{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()


def _try_a_write(folder: Path, field: str = "--output-dir") -> None:
    """Permissions do not tell of read-only or full disks. The file has no name, and is gone at once."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise UserError(
            f"{field}: {folder} cannot be written ({error.strerror}); name another folder, or make room"
        ) from None


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole or not at all. Returns its path."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_summary(
    folder: Path, job: str, seconds: float, artifacts: Mapping[str, Path], metrics: Mapping[str, float]
) -> Path:
    """summary.json of a finished job that tracks nothing in MLflow, in the form that all jobs leave."""
    summary = {
        "job": job,
        "status": "finished",
        "mlflow_run_id": None,
        "mlflow_tracking_uri": None,
        "seconds": round(seconds, 2),
        "artifacts": {name: str(path.relative_to(folder)) for name, path in artifacts.items()},
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
    }
    return write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def shown_path(path: Path) -> Path:
    """A path as it is told to people: from the working folder, where it lies in that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
