"""Saying something never raises, whatever the console is."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest

from renege_ray.output.console import say

ROOT = Path(__file__).resolve().parents[2]
WORK = """
from renege_ray.config.program import run_job
from renege_ray.output.console import say
def main(argv):
    for line in range(3000):
        say(f"line {line}", error=line % 2 == 1)
    open(argv[0], "w").write("done")
run_job(main)
"""


def start(tmp_path: Path, **options: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path / "done")], cwd=ROOT, **options)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["stdout", "stderr", "both"])
def test_work_goes_on_where_nobody_reads_any_more(tmp_path: Path, closed: str) -> None:
    """What `job | head` and Ctrl-C on `job | tee log` do."""
    streams = ("stdout", "stderr") if closed == "both" else (closed,)
    process = start(tmp_path, **dict.fromkeys(streams, subprocess.PIPE))
    for stream in streams:
        getattr(process, stream).close()
    assert process.wait() == 0
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.slow
def test_work_goes_on_where_the_log_is_on_a_full_disk_or_closed_from_the_start(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        assert start(tmp_path, stdout=full, stderr=full).wait() == 0
    command = f'"{sys.executable}" -c "$0" "$1" >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, WORK, str(tmp_path / "again")], cwd=ROOT).returncode == 0
    assert (tmp_path / "done").exists() and (tmp_path / "again").exists()


@pytest.mark.parametrize("text", ["trüb", "红色的星星", "broken \udcff name"])
def test_letters_that_the_console_lacks_are_escaped(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "utf-8"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        say(f"a negative {text}, and what follows")
        shown = written.getvalue().decode(encoding)
        assert shown.startswith("a negative ") and shown.endswith(", and what follows\n")
        sys.stdout.detach()


def test_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    say("nobody hears this")
    monkeypatch.setattr(sys, "stdout", None)
    say("nor this")


def test_nothing_prints_past_it() -> None:
    """`print` raises where `say` does not."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "renege_ray").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert not found
