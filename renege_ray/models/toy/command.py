"""`renege-ray toy export DIR`: an embedded model as a folder that plain diffusers loads."""

from collections.abc import Sequence
from pathlib import Path

from renege_ray.config.argument_parser import ArgumentParser
from renege_ray.models.toy import EMBEDDED_MODELS, GUIDANCE_SCALE, NUM_INFERENCE_STEPS, export


def main(argv: Sequence[str]) -> None:
    """Run the command. Raises UserError for a folder that cannot be written to."""
    parser = ArgumentParser(prog="renege-ray toy", description="The models in the package.")
    commands = parser.add_subparsers(metavar="export")
    command = commands.add_parser("export", help="write one as a folder that plain diffusers loads")
    command.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument(
        "--model", choices=EMBEDDED_MODELS, default=EMBEDDED_MODELS[0], help="which of them (default: %(default)s)"
    )
    given = parser.parse_args(list(argv))
    export(given.folder, given.model)
    print(f"Wrote {given.folder}. Use it from diffusers:\n")
    print("    from diffusers import StableDiffusionPipeline")
    print(f'    pipe = StableDiffusionPipeline.from_pretrained("{given.folder}", safety_checker=None)')
    print('    pipe("a big red star on a teal background", height=32, width=32,')
    print(f"         num_inference_steps={NUM_INFERENCE_STEPS}, guidance_scale={GUIDANCE_SCALE:g}).images[0]")
