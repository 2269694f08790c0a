"""Peak memory of the driver of per-prompt tuning: of few prompts against ten times as many.

    python -m benchmarks.bench_tuning_memory [FEW [MANY]]

What a driver holds does not depend on how long its workers compute, so a prompt is one update, one seed and two
sampler steps here. Each run is a process of its own (200 and 2,000 prompts, two workers); its high-water mark is the
kernel's (VmHWM), which begins anew with each program.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

AIM = 0.10
FLAGS = [
    "--num-workers", "2", "--tuning.steps", "1", "--tuning.tune-seeds", "1", "--tuning.eval-seeds", "1",
    "--tuning.gradients-per-rollout", "1", "--sampling.num-inference-steps", "2", "--sampling.gradient-steps", "0,2",
    "--rewards.judges", "[]",
]  # fmt: skip
DRIVER = """\
import sys
from pathlib import Path
from renege_ray.config.cli import from_args
from renege_ray.cluster.pipelines.tuning_job import run

code = run(from_args(sys.argv[1:], "tune_prompts").config)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM:")))
sys.exit(code)
"""


def peak_mib(prompts: int) -> float:
    """MiB of the driver that tunes so many toy prompts."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*FLAGS, "--tuning.num-prompts", str(prompts), "--output-dir", str(Path(folder) / "run")]
        command = [sys.executable, "-c", DRIVER, *flags]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(printed.split()[-2]) / 1024


def main(few: int = 200, many: int = 2000) -> float:
    """Print both; returns by how much the larger run's peak is above the smaller one's, as a share of it."""
    small, large = peak_mib(few), peak_mib(many)
    rise = large / small - 1
    print(f"driver: {small:.0f} MiB for {few} prompts, {large:.0f} for {many}: {rise:+.1%} (aim: within {AIM:.0%})")
    return rise


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
