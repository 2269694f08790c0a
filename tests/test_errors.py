"""Full disks are known by whichever library meets them."""

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from renege_ray.errors import full_line, is_full

ROOT = Path(__file__).resolve().parents[1]


def test_a_real_full_device() -> None:
    with pytest.raises(OSError) as failure, open("/dev/full", "w") as full:
        full.write("x")
        full.flush()
    assert is_full(failure.value)
    assert "No space left" in full_line(failure.value) and "--resume" in full_line(failure.value)
    try:
        raise RuntimeError("training failed") from failure.value
    except RuntimeError as error:
        assert is_full(error)


def test_other_libraries() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("pragma max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as full:
        for number in range(9):
            database.execute(f"create table t{number} (x)")
    assert is_full(full.value)
    assert is_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    for other in (OSError(errno.EACCES, "denied"), ValueError("no"), RuntimeError()):
        assert not is_full(other)


PROGRAM = """
from pathlib import Path
import torch
from safetensors.torch import save_file
from renege_ray.config.program import run_job
def main(argv):
    try:
        save_file({"x": torch.zeros(100_000)}, argv[0])
    finally:
        Path(argv[0]).write_bytes(bytes(200_000))  # what tells of a failure fails likewise
run_job(main)
"""


@pytest.mark.slow
def test_a_program_ends_with_one_line(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "file")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1 and "no room on the disk" in process.stderr
