"""`renege-ray toy export DIR`: an embedded model as a folder that plain diffusers loads."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from renege_ray.config.argument_parser import ArgumentParser
from renege_ray.config.run import ModelConfig
from renege_ray.errors import UserError
from renege_ray.models.toy import EMBEDDED_MODELS, FIRST_MODEL, GUIDANCE_SCALE, NUM_INFERENCE_STEPS
from renege_ray.output.console import say
from renege_ray.output.paths import absolute_path


def main(argv: Sequence[str]) -> None:
    """Run the command. Raises UserError for a folder that cannot be written to."""
    parser = ArgumentParser(prog="renege-ray toy", description="The models in the package.")
    commands = parser.add_subparsers(metavar="export")
    command = commands.add_parser("export", help="write one as a folder that plain diffusers loads")
    command.add_argument("folder", type=absolute_path, metavar="DIR", help="a new or empty folder")
    command.add_argument(
        "--model", choices=EMBEDDED_MODELS, default=FIRST_MODEL, help="which of them (default: %(default)s)"
    )
    given = parser.parse_args(list(argv))
    export(given.folder, given.model)
    say(f"Wrote {given.folder}. Use it from diffusers:\n")
    say("    from diffusers import StableDiffusionPipeline")
    say(f'    pipe = StableDiffusionPipeline.from_pretrained("{given.folder}", safety_checker=None)')
    say('    pipe("a big red star on a teal background", height=32, width=32,')
    say(f"         num_inference_steps={NUM_INFERENCE_STEPS}, guidance_scale={GUIDANCE_SCALE:g}).images[0]")


def export(folder: Path, model: str = FIRST_MODEL) -> None:
    """Writes a model as a diffusers folder; all of it or nothing.

    Raises:
        UserError: `folder` exists and is not an empty folder, or cannot be written.
    """
    from renege_ray.models.loading.hub import load_pipeline  # imports diffusers, which --help need not wait for

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export folder {folder} exists and is not empty: name a new one")
    temporary = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        # In float32: loaded without a dtype, a float16 folder comes up with parts of either type, and fails.
        load_pipeline(ModelConfig(id=model))[0].save_pretrained(temporary, safe_serialization=True)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"export folder {folder} cannot be written: {error.strerror}") from error
