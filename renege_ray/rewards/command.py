"""`renege-ray rewards score | list`: score images by hand."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from renege_ray.config.argument_parser import ArgumentParser, help_text
from renege_ray.errors import UserError, as_written, first_line
from renege_ray.output.console import say
from renege_ray.output.paths import absolute, absolute_path
from renege_ray.output.pictures import text_table
from renege_ray.rewards.catalogue import REWARD_NAMES, REWARDS, SHORT_NAMES, check_names, full_name


def main(argv: Sequence[str]) -> None:
    """Run a command. Raises UserError for anything wrong with the flags or the files."""
    arguments = _parser().parse_args(list(argv))
    say(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    examples = help_text("rewards")
    parser = ArgumentParser(
        prog="renege-ray rewards",
        description="Score images with a reward model, or list the reward models.",
        epilog=examples,
    )
    commands = parser.add_subparsers(metavar="score|list")
    score = commands.add_parser("score", help="print the scores of images for a prompt", epilog=examples)
    score.add_argument(
        "images", nargs="+", type=absolute_path, metavar="IMAGE", help="image files; each is scored by itself"
    )
    score.add_argument("--reward", required=True, metavar="NAME", help=f"one of {', '.join(REWARD_NAMES)}")
    score.add_argument("--prompt", metavar="TEXT", help="what the images should show; may be empty")
    score.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a local copy of the weights, file or folder (default: the Hugging Face Hub); NAME is for a reward's "
        "further files, as the error says that misses them",
    )
    score.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps ... (default: a GPU if there is one)")
    score.add_argument("--json", action="store_true", help="print JSON, with the checkpoint's SHA-256")
    score.set_defaults(run=_score)
    listing = commands.add_parser("list", help="print the rewards, their usual ranges and their files")
    listing.set_defaults(run=_list)
    return parser


def _score(arguments: argparse.Namespace) -> str:
    """What `score` prints."""
    check_names([arguments.reward], REWARD_NAMES, "--reward")
    facts = REWARDS[full_name(arguments.reward)]
    if arguments.prompt is None and facts.reads_prompts:
        raise UserError(f"--prompt: {arguments.reward} needs one; it may be empty, --prompt ''")
    checkpoints = _checkpoints(arguments.checkpoint, facts.name)
    images = [_read(path) for path in arguments.images]

    from renege_ray.rewards.load import load_rewards

    device = _device(arguments.device)
    reward = load_rewards([facts.name], device, checkpoints=checkpoints)[facts.name]
    scores = [reward.score(image.to(device), [arguments.prompt or ""]).item() for image in images]
    if arguments.json:
        rows = [{"image": str(path), "score": score} for path, score in zip(arguments.images, scores, strict=True)]
        return json.dumps({"reward": reward.describe(), "prompt": arguments.prompt, "scores": rows}, indent=2)
    usual = "{:g} to {:g}".format(*reward.usual_range)
    table = text_table(
        ["image", reward.name, "usual range"],
        [[as_written(str(path)), f"{score:.4f}", usual] for path, score in zip(arguments.images, scores, strict=True)],
    )
    cut = "\nthe prompt is too long for the reward, and its end was left out" if reward.truncated_prompts else ""
    return table + cut


def _list(arguments: argparse.Namespace) -> str:
    """What `list` prints."""
    short = {full: f"{full} ({name})" for name, full in SHORT_NAMES.items()}
    rows = [
        [
            short.get(facts.name, facts.name),
            "{:g} to {:g}".format(*facts.usual_range),
            f"{facts.gib + facts.text_gib:.1f} GiB",
            facts.about,
            str(facts.sources[0]) if facts.sources else "in the package",
        ]
        for facts in REWARDS.values()
    ]
    return text_table(["name (short)", "usual range", "on a GPU", "what it judges", "weights"], rows)


def _checkpoints(texts: Sequence[str], reward: str) -> dict[str, str]:
    """{name: path} of PATH (the reward's own weights) and NAME=PATH."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        # A path may have an equals sign of its own.
        if not equals or Path(text).exists():
            name, path = reward, text
        if name in found:
            raise UserError(f"--checkpoint: {name} is given twice, {found[name]!r} and {path!r}; give one")
        found[name] = absolute(path)
    return found


def _read(path: Path) -> Any:
    """The image of a file as (1, 3, height, width) in [0, 1]."""
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    except FileNotFoundError:
        raise UserError(f"image {path}: there is no such file; check the path") from None
    except Exception as error:  # damaged images fail in many ways
        raise UserError(
            f"image {path} cannot be read ({type(error).__name__}): give a PNG, JPEG or WebP file"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def _device(name: str | None) -> Any:
    """The device of this name, tried."""
    import torch

    from renege_ray.models.hardware import default_device

    if name is None:
        return default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {name!r} cannot be used here ({first_line(error)}); give cpu") from error
