"""What a GPU makes of this package, in at most eight minutes: one script, no network, no ray and no mlflow.

    python benchmarks/gpu.py [--output DIR] [--seconds N] [--tiny]

Models of true size get random weights on the spot (`gpu_models.py`). Parts run one after the other, each within what
time is left (`gpu_parts.py`); after each, DIR/gpu.json and DIR/gpu.md have all that has been found (`gpu_report.py`).
What has not been run says so.
"""

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# By the names that they are imported by: all that the parts need, of which a GPU machine may lack some.
NEEDED = (
    "torch", "diffusers", "transformers", "tokenizers", "safetensors", "huggingface_hub", "pydantic", "yaml", "ftfy",
)  # fmt: skip
SECONDS = 450.0  # a call into a library is not cut off before it returns: 30 s for that, and for the end


def main() -> int:
    """Returns the exit code: 1 where a part failed, 2 where nothing can be run."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together, imports included")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script on a CPU")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"benchmarks/gpu.py: missing {', '.join(missing)}; install them and run it again", file=sys.stderr)
        return 2
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.path.insert(0, str(ROOT))
    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no GPU here; --tiny tries the script on a CPU", file=sys.stderr)
        return 2
    from benchmarks.gpu_parts import run

    device = torch.device("cpu" if arguments.tiny else "cuda")
    return run(arguments.output, device, arguments.seconds - (time.monotonic() - started), tiny=arguments.tiny)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a compilation that was cut off goes on in processes that Python would wait for
