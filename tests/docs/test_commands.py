"""Every command of the pages is run, in one folder: what one command makes, others use.

`renege-ray` and `jobs/*.py` run in this process. Of the jobs on Ray, one of each kind runs for real (`REAL`), made
small by `SMALL`; all others are dry runs, which check everything that they are given. What needs the weights of a real
model may end in "not ready" for want of them, and in nothing else. Nothing is downloaded. A command that no rule covers
is a failure.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from PIL import Image

from renege_ray.__main__ import PROGRAMS
from renege_ray.errors import UserError
from renege_ray.method.embedding import EmbeddingMetadata, NegativeEmbedding
from tests.docs.pages import PAGES, ROOT, Block, Command, blocks, commands, commands_of
from tests.tiny import build_tiny_pipeline, write_lora

pytestmark = pytest.mark.ray

# The one command of each job that runs for real, by its output folder, in the order in which they use each other's.
REAL = {
    "train-global": "outputs/first",
    "tune-prompts": "outputs/tuned",
    "evaluate": "outputs/compared",
    "sweep": "outputs/sweep",
}
_IMAGES = "--sampling.num-inference-steps 4 --sampling.gradient-steps 0,3 --num-workers 1"
_TRAINING = (
    "--optim.steps 4 --optim.batch-size 4 --optim.gradients-per-rollout 1 --prompts.handwritten blurry "
    "--validation.num-prompts 2 --validation.every 2 --validation.num-images 2 --test.num-pairs 2"
)
SMALL = {
    "train-global": f"{_TRAINING} {_IMAGES}",
    "tune-prompts": "--num-prompts 2 --tuning.steps 1 --tuning.gradients-per-rollout 1 --tuning.tune-seeds 1 "
    f"--tuning.eval-seeds 1 {_IMAGES}",
    "evaluate": "--num-prompts 2 --sampling.num-inference-steps 4 --num-workers 1",
    "sweep": f"{_TRAINING} --trials 2 --max-concurrent 1 --confirm-seeds 0 --scheduler none "
    "--sampling.num-inference-steps 10 --sampling.gradient-steps 0,5",
    "generate": "--num-inference-steps 4",
    "analyses pseudo-positive": "--num-inference-steps 4",
    "analyses sampler-error": "--num-inference-steps 4 --num-images 2",
    "analyses efficiency": "--num-inference-steps 2 --num-probes 2 --images-per-probe 1",
}
# Lines of a shell that set something up.
SHELL = (". .venv/bin/activate", "export RAY_AUTH_MODE=token")
# Programs whose command lines are parsed and not run: {name: where its click command is}.
PARSED = {"ray": ("ray.scripts.scripts", "cli"), "mlflow": ("mlflow.cli", "cli")}
# What every complaint says of something that is on the Hub and not here.
WITHOUT_WEIGHTS = "HF_HUB_OFFLINE is set"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder: with the files that the pages name, and what the real commands have made, on one Ray for all."""
    from renege_ray.cluster.session import ray_session  # first: it sets up Ray's environment

    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_files(folder)
        own_ray = not ray_session.ray.is_initialized()
        if own_ray:
            ray_session.ray.init(
                address="local", num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=128 * 2**20,
                logging_level="error", log_to_driver=False,
            )  # fmt: skip
        for job, output in REAL.items():
            command = next(found for found in every_command() if is_job(found, job) and output in found.words)
            assert run_program(job, command.words[2:], dry_run=True) == 0, command
            assert run_program(job, command.words[2:], small=SMALL[job]) == 0, command
        yield folder
        if own_ray:
            ray_session.ray.shutdown()


def make_files(folder: Path) -> None:
    """Tiny ones by the names that the pages use."""
    (folder / "prompts.txt").write_text("\n".join(f"a red fox in the snow, number {i}" for i in range(60)))
    for picture in ("star.png", "edges.png"):
        Image.new("RGB", (32, 32), "teal").save(folder / picture)
    build_tiny_pipeline().save_pretrained(folder / "my-model")
    (write_lora(build_tiny_pipeline(), folder / "lora") / "pytorch_lora_weights.safetensors").rename(
        folder / "my_lora.safetensors"
    )
    (folder / "weights").mkdir()
    for weights in ("HPS_v2.1_compressed.pt", "merges.txt"):
        (folder / "weights" / weights).write_bytes(b"")
    embedding = torch.zeros(1, 77, 768)
    torch.save(embedding, folder / "sd1.5_reneg_emb.bin")
    tensors = {"negative_prompt_embeds": embedding}
    NegativeEmbedding(tensors, EmbeddingMetadata("")).save(folder / "sd15_negative.safetensors")
    for page in PAGES:
        for block in blocks(page):
            if block.file:
                (folder / block.file).write_text(block.text)


def every_command() -> Iterator[Command]:
    return (command for page in PAGES for command in commands(page))


def is_job(command: Command, job: str) -> bool:
    return command.words[:2] == ("renege-ray", job)


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str, place: Path, capsys: Capture) -> None:
    for block in blocks(page):
        if block.language == "python" and not block.file:
            run_python(block, place)
        elif block.language == "bash":
            for command in commands_of(block):
                check(command, place, capsys)


def check(command: Command, place: Path, capsys: Capture) -> None:
    """Run a command by the first rule that covers it."""
    line = " ".join(command.words)
    if line in SHELL:
        return
    words = [word.replace("/mnt/shared", str(place / "shared")) for word in command.words]
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    match words:
        case ["renege-ray", name, *arguments]:
            check_program(command, name, arguments, capsys)
        case ["python", script, *arguments] if script.startswith("jobs/"):
            assert (ROOT / script).is_file(), command
            check_program(command, Path(script).stem.replace("_", "-"), arguments, capsys)
        case ["ray", "job", "submit", *rest]:
            job = rest.index("--") + 1
            check_parsed(command, ["job", "submit", *rest[: job + 1]])
            check(replace(command, words=tuple(rest[job:])), place, capsys)
        case [name, *arguments] if name in PARSED:
            check_parsed(command, arguments)
        case ["make", *targets]:
            done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        case ["python", "-m", "renege_ray.models.toy.train", *arguments]:  # an hour; the other modules are renege-ray
            import_module("renege_ray.models.toy.train.__main__")._parse(arguments)
        case _:
            pytest.fail(f"{command}: no rule says how to check this")


def check_program(command: Command, name: str, arguments: list[str], capsys: Capture) -> None:
    """Run a command of `renege-ray`; jobs on Ray as dry runs."""
    key = f"{name} {arguments[0]}" if name == "analyses" else name
    # What is in the folder of a real run already was made by the small settings.
    again = name in REAL and REAL[name] in arguments and "--resume" not in arguments
    if again and name == "train-global":  # it has run, and would be refused now
        return
    real_weights = "--preset" in arguments and not arguments[arguments.index("--preset") + 1].startswith("outputs/")
    small = SMALL.get(key, "") if again or name not in REAL else ""
    try:
        code = run_program(name, arguments, small=small, dry_run=name in REAL)
    except UserError as error:
        printed = capsys.readouterr().out.splitlines()
        reasons = [text for text in printed if text.startswith("not ready")] or [str(error)]
        assert real_weights and all(WITHOUT_WEIGHTS in reason for reason in reasons), f"{command}: {reasons}"
    else:
        assert code == 0, f"{command}: {capsys.readouterr().err}"


def run_program(name: str, arguments: Sequence[str], *, small: str = "", dry_run: bool = False) -> int:
    """Run a command with flags that make it small. In a dry run, which costs nothing, a page's own flags win."""
    program: Callable[[Sequence[str]], int] = PROGRAMS[name]
    if dry_run:
        return program([*small.split(), *arguments, *([] if "--dry-run" in arguments else ["--dry-run"])])
    return program([*arguments, *small.split()])


def check_parsed(command: Command, arguments: list[str]) -> None:
    """The program is there, and its own parser takes the command line."""
    name = command.words[0]
    assert (Path(sys.executable).parent / name).exists() or shutil.which(name), command
    module, attribute = PARSED[name]
    found: Any = getattr(import_module(module), attribute)
    while isinstance(found, click.Group):
        below = found.get_command(click.Context(found), arguments[0])
        assert below is not None, f"{command}: {name} has no {arguments[0]}"
        found, arguments = below, arguments[1:]
    with found.make_context(name, list(arguments)):
        pass


def run_python(block: Block, place: Path) -> None:
    """Run a block; after the first of the README, whose names the others may use."""
    first = next(found for found in blocks("README.md") if found.language == "python" and not found.file)
    if not (place / "toy_model").exists():
        PROGRAMS["toy"](["export", "toy_model"])
    names: dict[str, Any] = {}
    for part in (first, block) if block != first else (block,):
        exec(compile(part.text, f"{part.page}:{part.line}", "exec"), names)
    assert all(image.size == (32, 32) for image in names["images"]), block
