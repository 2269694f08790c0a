"""A million prompts by simulation: the real job on Ray Data, with a worker that computes nothing.

    python -m benchmarks.bench_many_prompts [--rows ROWS] [--made ROWS] [--scratch FOLDER]

The driver, the actors, the chunks, the files, their merging and MLflow are those of `tune-prompts`; a row takes no
time, and its embedding is small (256 bytes), so that a million of them are some hundred MB of disk. The driver is
killed when half of the rows that it has to make are there, and started again. Then another process opens the table and
looks prompts up. With `--made`, so many rows are there from the beginning, in files of 1,024: so the last of a million
can be measured without the hour that the others take.

Resident memory is the kernel's (VmRSS, VmHWM), computing time that of the driver's process. Both are given for each
1,000 rows, so that runs of different lengths can be compared.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import sysconf
from pathlib import Path

from renege_ray.config.cli import Invocation, from_args
from renege_ray.output.parquet_folder import is_merged

AIM_FILES, AIM_RESUME_SECONDS, AIM_LOOKUP_SECONDS, AIM_MIB = 2000, 60.0, 1.0, 1024
LOOKED_UP = 200
_SECONDS_OF_ORPHANS = 5.0  # workers end that soon after their driver
_LINE = re.compile(r"^\s*(\d+)/\d+ prompts")
_COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange")
_THINGS = ("fox", "lighthouse", "violin", "teapot", "glacier", "market", "orchard", "locomotive", "harbour", "owl")


def prompt(number: int) -> str:
    """About 80 characters, as prompts have."""
    colour, thing = _COLOURS[number % 7], _THINGS[number % 10]
    return f"a {colour} {thing} beside a river at dusk, oil on canvas, highly detailed, study {number}"


def drive(folder: Path, rows: int) -> int:
    """The driver: `tune-prompts` with the idle worker, and without the gallery, which needs a model."""
    from PIL import Image

    from benchmarks.idle_worker import IdleWorker
    from renege_ray.cluster.pipelines import pipeline, tuning_job, tuning_results

    setattr(tuning_job, "PromptWorker", IdleWorker)  # noqa: B010 (the job gets another worker, of the same kind)
    tuning_results._gallery = lambda *_: Image.new("RGB", (8, 8))
    pipeline.SECONDS_BETWEEN_LINES = 0.0
    parsed = _parsed(folder, rows)
    return tuning_job.run(parsed.config, resume=parsed.resume)


def make(folder: Path, rows: int, made: int) -> None:
    """So many rows of the table."""
    from benchmarks.idle_worker import write_rows
    from renege_ray.embeddings.tables import TABLE
    from renege_ray.output.merged_files import FEWEST_ROWS
    from renege_ray.tuning.inputs import read_tuning_inputs

    table = folder / "run" / f"{TABLE}{read_tuning_inputs(_parsed(folder, rows).config).key}"
    table.mkdir(parents=True)
    for start in range(0, made, FEWEST_ROWS):
        write_rows(str(table / f"part-{start:032x}.parquet"), list(map(prompt, range(start, start + FEWEST_ROWS))))


def _parsed(folder: Path, rows: int) -> Invocation:
    flags = ["--prompts", str(folder / "prompts.txt"), "--output-dir", str(folder / "run"), "--num-workers", "2"]
    return from_args([*flags, "--tuning.num-prompts", str(rows), "--cluster.cpus-per-worker", "1"], "tune_prompts")


def look_up(folder: Path, rows: int) -> None:
    """Print how long a table takes to be opened, the slowest look-up, and the memory of this process."""
    import random

    from renege_ray.embeddings.prompt_embeddings import PromptEmbeddings

    before = _mib("self", "VmRSS")
    started = time.monotonic()
    with PromptEmbeddings.open(folder / "run") as embeddings:
        opened = time.monotonic() - started
        slowest = 0.0
        for number in random.Random(0).sample(range(rows), min(rows, LOOKED_UP)):
            started = time.monotonic()
            embeddings[prompt(number)]
            slowest = max(slowest, time.monotonic() - started)
        print(
            f"opened in {opened:.1f} s; the slowest of {min(rows, LOOKED_UP)} look-ups {slowest:.3f} s "
            f"(aim: {AIM_LOOKUP_SECONDS:g} s); peak of the process {_mib('self', 'VmHWM'):.0f} MiB, of which "
            f"{before:.0f} before opening (aim: {AIM_MIB})"
        )
        for words in ("a teapot made of ice", "an owl that plays the violin"):
            started = time.monotonic()
            embeddings.match(words)
            print(f"nearest prompt of another one in {time.monotonic() - started:.2f} s")
        print(f"peak of the process then {_mib('self', 'VmHWM'):.0f} MiB")


@dataclass(frozen=True)
class _Look:
    """At the driver, when it told of its progress."""

    seconds: float
    computing: float
    rows: int
    mib: float


@contextmanager
def _driver(folder: Path, rows: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.bench_many_prompts", "--drive", str(folder), "--rows", str(rows)]
    with (folder / "driver.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _looks(process: subprocess.Popen[str]) -> Iterator[_Look]:
    """Until its end."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := _LINE.match(line):
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            computing = sum(map(int, ticks)) / sysconf("SC_CLK_TCK")
            yield _Look(time.monotonic(), computing, int(match[1]), _mib(str(process.pid), "VmRSS"))


def _mib(process: str, field: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def _small_files(table: Path) -> set[str]:
    """Those that workers have written."""
    return {path.name for path in table.glob("part-*") if not is_merged(str(path))}


def _settled(table: Path) -> set[str]:
    """The small files of a table whose driver was killed, once its workers have ended, too."""
    found: set[str] | None = None
    while found != (found := _small_files(table)):
        time.sleep(_SECONDS_OF_ORPHANS)
    return found


def _tell(looks: Sequence[_Look], what: str) -> None:
    """Between the first look and the last, and the memory at each quarter of the way."""
    first, last = looks[0], looks[-1]
    thousands = max(last.rows - first.rows, 1) / 1000
    quarters = [looks[place * (len(looks) - 1) // 4].mib for place in range(5)]
    print(
        f"{what}: {first.rows} to {last.rows} rows, each 1,000 in {(last.seconds - first.seconds) / thousands:.2f} s; "
        f"the driver computes {(last.computing - first.computing) / thousands:.2f} s of them, and holds "
        f"{', '.join(f'{mib:.0f}' for mib in quarters)} MiB",
        flush=True,
    )


def main(rows: int = 10_000, made: int = 0, scratch: Path | None = None) -> None:
    """Print everything."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        (folder / "prompts.txt").write_text("".join(f"{prompt(number)}\n" for number in range(rows)))
        make(folder, rows, made)
        with _driver(folder, rows) as process:
            looks = []
            for look in _looks(process):
                looks.append(look)
                if look.rows >= (made + rows) / 2:
                    break
            process.kill()
        _tell(looks, "until the kill")
        (table,) = (folder / "run").glob("prompts-*")
        kept = _settled(table)
        print(f"killed; {len(kept)} files", flush=True)
        started = time.monotonic()
        with _driver(folder, rows) as process:
            while _small_files(table) <= kept and process.poll() is None:
                time.sleep(0.1)
            print(f"goes on after {time.monotonic() - started:.1f} s (aim: {AIM_RESUME_SECONDS:g} s)", flush=True)
            looks = list(_looks(process))
            last = looks[-1].seconds
            code = process.wait()
        if code:
            raise SystemExit(f"the driver ended with {code}:\n{(folder / 'driver.log').read_text()[-2000:]}")
        _tell(looks, "after the kill")
        files = list(table.iterdir())
        size = sum(path.stat().st_size for path in files) / 2**20
        print(f"ended {time.monotonic() - last:.1f} s after the last row")
        print(f"{len(files)} files (aim: {AIM_FILES}), {size:.0f} MiB", flush=True)
        command = [sys.executable, "-m", "benchmarks.bench_many_prompts", "--look-up", name, "--rows", str(rows)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--made", type=int, default=0)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--look-up", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        sys.exit(drive(given.drive, given.rows))
    elif given.look_up:
        look_up(given.look_up, given.rows)
    else:
        main(given.rows, given.made, given.scratch)
