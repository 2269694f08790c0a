"""VBench's own package (github.com/Vchitect/VBench) on a folder of videos: all dimensions that need no prompt list.

    renege-ray vbench FOLDER --dimension temporal_flickering --dimension aesthetic_quality

It pins old versions of much that this package needs new ones of, so it is best given an environment of its own;
`--python` names the interpreter of that. `renege_ray.rewards.video.video_metrics` has three of the dimensions.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from renege_ray.config.argument_parser import ArgumentParser
from renege_ray.errors import UserError
from renege_ray.output.console import say
from renege_ray.output.paths import absolute_if_there, absolute_path

DIMENSIONS = (
    "aesthetic_quality",
    "background_consistency",
    "dynamic_degree",
    "human_action",
    "imaging_quality",
    "motion_smoothness",
    "overall_consistency",
    "subject_consistency",
    "temporal_flickering",
    "temporal_style",
)
PAPER = ("aesthetic_quality", "motion_smoothness", "temporal_flickering", "background_consistency")  # its Table 5
SUFFIXES = (".mp4", ".gif")
_NAME = "videos"
_EVALUATE = """
import sys, torch
from vbench import VBench
device, videos, output, *dimensions = sys.argv[1:]
VBench(torch.device(device), "", output).evaluate(
    videos_path=videos, name="videos", dimension_list=dimensions, mode="custom_input"
)
"""


def vbench_scores(
    videos: Path, dimensions: Sequence[str] = PAPER, *, python: str = sys.executable, device: str = "cuda"
) -> dict[str, dict[str, float]]:
    """What VBench says of each video, {dimension: {file name: score}}, each score in [0, 1].

    Args:
        videos: a folder of .mp4 or .gif files.
        dimensions: of `DIMENSIONS`.
        python: an interpreter that has the package `vbench`.
        device: where to compute, as torch calls it.

    Raises:
        UserError: there are no videos, a dimension is not known, there is no such package, or it fails.
    """
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown:
        raise UserError(f"--dimension: {unknown[0]!r} is not one that takes any videos: {', '.join(DIMENSIONS)}")
    if not videos.is_dir() or not any(file.suffix.lower() in SUFFIXES for file in videos.iterdir()):
        raise UserError(f"videos: {str(videos)!r} is no folder with {' or '.join(SUFFIXES)} files")
    _check_installed(python)
    with tempfile.TemporaryDirectory() as output:
        done = subprocess.run(
            [python, "-c", _EVALUATE, device, str(videos.resolve()), output, *dimensions],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"vbench in {python} failed: {reason}")
        results = json.loads(Path(output, f"{_NAME}_eval_results.json").read_text(encoding="utf-8"))
    return {
        name: {Path(row["video_path"]).name: float(row["video_results"]) for row in rows}
        for name, (_, rows) in results.items()
    }


def _check_installed(python: str) -> None:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vbench') is None)"
    try:
        missing = subprocess.run([python, "-c", code], capture_output=True, check=False).returncode != 0
    except OSError as error:
        raise UserError(f"--python: {python!r} cannot be run ({error.strerror})") from error
    if missing:
        raise UserError(
            f"the package vbench is not installed for {python}: install it in an environment of its own (it wants old "
            "versions of numpy and transformers), and name that environment's interpreter by --python"
        )


def main(argv: Sequence[str]) -> None:
    """Prints the scores as JSON. Raises UserError where something is wrong with what was given."""
    parser = ArgumentParser(prog="renege-ray vbench", description=__doc__)
    parser.add_argument("videos", type=absolute_path, metavar="FOLDER", help="a folder of .mp4 or .gif files")
    parser.add_argument(
        "--dimension",
        action="append",
        metavar="NAME",
        help=f"any number of {', '.join(DIMENSIONS)} (default: those of the paper's Table 5, {', '.join(PAPER)})",
    )
    parser.add_argument(
        "--python",
        type=absolute_if_there,
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that has vbench",
    )
    parser.add_argument("--device", default="cuda", help="where to compute (default: %(default)s)")
    given = parser.parse_args(list(argv))
    scores = vbench_scores(given.videos, given.dimension or PAPER, python=given.python, device=given.device)
    means = {name: sum(rows.values()) / len(rows) for name, rows in scores.items()}
    say(json.dumps({"mean": means, "videos": scores}, indent=1))
