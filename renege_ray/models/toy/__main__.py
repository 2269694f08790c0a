"""`python -m renege_ray.models.toy export DIR`: an embedded model as a folder that plain diffusers loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from renege_ray.errors import UserError
from renege_ray.models.toy import EMBEDDED_MODELS, GUIDANCE_SCALE, NUM_INFERENCE_STEPS, export


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 for a folder that cannot be written to."""
    parser = argparse.ArgumentParser(prog="python -m renege_ray.models.toy", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("export", help="write an embedded model as a diffusers folder")
    command.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    command.add_argument(
        "--model", choices=EMBEDDED_MODELS, default=EMBEDDED_MODELS[0], help="which of them (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        export(arguments.folder, arguments.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {arguments.folder}. Use it from diffusers:\n")
    print("    from diffusers import StableDiffusionPipeline")
    print(f'    pipe = StableDiffusionPipeline.from_pretrained("{arguments.folder}", safety_checker=None)')
    print('    pipe("a big red star on a teal background", height=32, width=32,')
    print(f"         num_inference_steps={NUM_INFERENCE_STEPS}, guidance_scale={GUIDANCE_SCALE:g}).images[0]")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
