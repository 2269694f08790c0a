"""`renege-ray embedding`: look into embedding files, convert them, publish them; check tuned prompts."""

import argparse
import re
from collections.abc import Callable, Sequence

from renege_ray.config.argument_parser import ArgumentParser, help_text
from renege_ray.config.paths import place
from renege_ray.config.sampling_flags import number
from renege_ray.errors import UserError
from renege_ray.output.console import say
from renege_ray.output.paths import absolute, absolute_path

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DESCRIPTION = "Look into negative embeddings, convert them, publish them; check a table of tuned prompts."
_CLOSE = 1e-3  # of rewards, between this package's generation and the pipeline's


def main(argv: Sequence[str]) -> int:
    """Run a command. Returns the exit code: 0, or 1 if rows do not pass their check.

    Raises:
        UserError: for anything wrong with the flags or the files.
    """
    given = _parser().parse_args(list(argv))
    commands: dict[str, Callable[[argparse.Namespace], int | None]]
    commands = {"inspect": _inspect, "convert": _convert, "export": _export, "check": _check}
    return commands[given.command](given) or 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="renege-ray embedding", description=_DESCRIPTION, epilog=help_text("embedding"))
    commands = parser.add_subparsers(dest="command", metavar="inspect|convert|export|check")

    inspect = commands.add_parser("inspect", help="shape, type, norms and metadata of files")
    inspect.add_argument("files", nargs="+", type=absolute_path, metavar="FILE", help=".safetensors, .bin, .pt or .pth")

    convert = commands.add_parser("convert", help="to safetensors with metadata")
    add = convert.add_argument
    add(
        "source",
        type=absolute_path,
        metavar="FILE",
        help=".safetensors, .bin, .pt or .pth (only tensors are unpickled)",
    )
    add("target", type=absolute_path, metavar="OUT.safetensors", help="is never replaced without --force")
    add("--base-model", metavar="NAME", help="the model that it was learned on")
    add(
        "--text-encoder",
        type=place,
        metavar="FOLDER|NAME",
        help="the encoder that it is for: a model's folder on this machine (its hash is stored, and other encoders are "
        "refused from then on), or a name for people",
    )
    add("--guidance-scale", type=_positive, metavar="W", help="during learning")
    add("--reward", metavar="NAME", help="that it was learned by")
    add("--prompts", metavar="NAME", help="that it was learned on")
    add("--steps", type=int, metavar="N", help="updates")
    add("--dtype", choices=("float16", "float32"), help="default: as it is")
    add("--force", action="store_true", help="replace OUT")

    export = commands.add_parser("export", help="a folder for the Hugging Face Hub")
    add = export.add_argument
    add("source", type=absolute_path, metavar="RUN|FILE", help="a run's output folder, or an embedding file")
    add(
        "--hub",
        required=True,
        type=absolute_path,
        metavar="DIR",
        help="the folder to write: new, empty, or with --force",
    )
    add("--base-model", metavar="OWNER/NAME", help="on the Hub; default: the name in the embedding")
    add("--license", default="other", metavar="ID", help="as the Hub names it; default: other, the base model's terms")
    add("--push", default="", metavar="OWNER/NAME", help="upload the folder to this repository of the Hub")
    add("--private", action="store_true", help="make that repository private, if it is new")
    add("--dry-run", action="store_true", help="print what would be written and uploaded, and do nothing")
    add("--force", action="store_true", help="write into a folder that is not empty")

    check = commands.add_parser("check", help="rows of tuned prompts, made again by diffusers")
    add = check.add_argument
    add("folder", type=absolute, metavar="RUN", help="the output folder of tune-prompts, or its folder in a storage")
    add("--rows", type=int, default=20, metavar="N", help="how many rows (default: 20)")
    return parser


def _inspect(given: argparse.Namespace) -> None:
    from renege_ray.embeddings.inspect import describe  # imports torch

    say("\n\n".join(describe(path) for path in given.files))


def _convert(given: argparse.Namespace) -> None:
    from renege_ray.embeddings.convert import Conversion, convert

    names = ("base_model", "guidance_scale", "reward", "prompts", "steps")
    metadata = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    missing = convert(
        Conversion(given.source, given.target, metadata, given.text_encoder, given.dtype, force=given.force)
    )[1]
    say(given.target)
    if missing:
        say(f"note: {missing}")


def _export(given: argparse.Namespace) -> None:
    from renege_ray.embeddings.publish import prepare, push

    if given.push and not _REPOSITORY.fullmatch(given.push):
        raise UserError(f"--push: {given.push!r} is no repository's name; give OWNER/NAME")
    content = prepare(given.source, base_model=given.base_model, licence=given.license, repository=given.push)
    if content.note:
        say(f"note: {content.note}")
    if given.dry_run:
        say("\n  ".join([f"would write to {given.hub}:", *content.files]))
        if given.push:
            say(f"would upload these files to the model repository {given.push} of the Hub")
        say(f"\n{content.card}")
        return
    content.write(given.hub, force=given.force)
    say("\n  ".join([f"wrote to {given.hub}:", *content.files]))
    if given.push:
        say(push(given.hub, given.push, content.files, private=given.private))


def _check(given: argparse.Namespace) -> int:
    from renege_ray.embeddings.check import check_rows

    if given.rows < 1:
        raise UserError(f"--rows: {given.rows} checks nothing; give a number from 1 up")
    say("seeds  recorded  made again  difference  prompt")
    differences = []
    for row in check_rows(given.folder, given.rows):
        differences.append(row.difference)
        say(f"{row.split:5}  {row.recorded:8.4f}  {row.again:10.4f}  {row.difference:10.1e}  {row.prompt[:60]!r}")
    passed = all(difference <= _CLOSE for difference in differences)  # NaN does not pass
    verdict = "met" if passed else "NOT met (a run in bfloat16 is off by its rounding: this is float32)"
    say(f"largest difference {max(differences):.1e}; recorded rewards are {verdict} to {_CLOSE:g}")
    return 0 if passed else 1


def _positive(text: str) -> float:
    if not 0 < (value := number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
