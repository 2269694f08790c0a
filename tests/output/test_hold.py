"""One process works in an output folder, whatever path leads there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from renege_ray.config.cli import from_args
from renege_ray.config.run import write_config
from renege_ray.errors import UserError
from renege_ray.output.folder import check_output_dir, identify
from renege_ray.output.hold import LOCK_FILE, hold

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from renege_ray.output.hold import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process_in(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_second_process_is_refused_in_one_line_however_it_comes(tmp_path: Path) -> None:
    folder, link, moved = tmp_path / "run", tmp_path / "link", tmp_path / "moved"
    link.symlink_to(folder)
    with another_process_in(folder) as process:
        write_config(from_args(["--output-dir", str(tmp_path / "x")], "train_global").config, folder)
        for argv in (["--output-dir", str(folder)], ["--resume", str(link)], ["--output-dir", f"{link}/../run/"]):
            for job in ("train_global", "tune_prompts", "evaluate", "sweep"):
                with pytest.raises(UserError, match=f"still going on in .*process {process.pid} on") as refusal:
                    from_args(argv, job)
                assert "\n" not in str(refusal.value) and "go on with it" not in str(refusal.value)
        folder.rename(moved)
        with pytest.raises(UserError, match="still going on"), hold(moved):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with hold(moved):  # the lock dies with the process
            check_output_dir(moved, resume=True)
            with hold(moved):
                pass


@pytest.mark.slow
def test_of_many_that_begin_at_once_one_works(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", HOLDER.replace("60", "5"), str(tmp_path / "run")] for _ in range(4)]
    started = [subprocess.Popen(c, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for c in commands]
    output = [process.communicate() for process in started]
    assert sorted(process.returncode for process in started) == [0, 1, 1, 1]
    assert sum(b"held" in out for out, _ in output) == 1
    assert all(b"UserError" in error for out, error in output if b"held" not in out)


def test_what_nothing_was_written_to_is_removed_again(tmp_path: Path) -> None:
    with hold(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run").exists()
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    assert (tmp_path / "run" / "result").exists()
    (tmp_path / "run" / "result").unlink()
    with hold(tmp_path / "run"):
        pass
    assert (tmp_path / "run").exists()  # was there before


@pytest.mark.parametrize("name", ["run", "why?", "Lauf #1 – grün", "红色", "%2F", "a" * 200])
def test_a_run_has_a_name_of_its_own_that_moves_with_it(tmp_path: Path, name: str) -> None:
    folder, other = tmp_path / name, tmp_path / "deeper" / name
    for made in (folder, other):
        made.mkdir(parents=True)
    identity = identify(folder)
    assert identify(folder) == identity != identify(other)
    assert identity.isascii() and not set(identity) & set("?#%/ ")
    (tmp_path / "link").symlink_to(folder)
    assert identify(tmp_path / "link") == identity
    folder.rename(tmp_path / "moved")
    assert identify(tmp_path / "moved") == identity
