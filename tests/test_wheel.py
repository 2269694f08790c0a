"""What `pip install` gives: the command trains and plans in an empty folder, with no checkout in sight."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--optim.batch-size", "8", "--validation.num-prompts", "4", "--validation.every", "5", "--test.num-pairs", "8"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that has the wheel, and everything else from the present environment."""
    env = tmp_path_factory.mktemp("fresh") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    (site_packages,) = env.glob("lib/python*/site-packages")
    # A line of such a file is one more folder to import from, after those of the environment itself; .pth files in that
    # folder, such as the one that leads to this checkout, are not followed.
    (site_packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(env / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return env / "bin"


def run(bin_folder: Path, folder: Path, program: str, *argv: str) -> str:
    """What a program of the environment prints, without what leads to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(bin_folder / program), *argv]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.slow
def test_what_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"renege_ray", "renege_ray-0.1.0.dist-info"}
    spaces = {f"renege_ray/sweeps/search_spaces/{path.name}" for path in (ROOT / "search_spaces").glob("*.*")}
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "renege_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert spaces and {name for name in names if name.startswith("renege_ray/")} == files | spaces


@pytest.mark.ray
def test_it_works_in_an_empty_folder(bin_folder: Path, tmp_path: Path) -> None:
    imported = run(bin_folder, tmp_path, "python", "-c", "import renege_ray; print(renege_ray.__file__)")
    assert imported.startswith(str(bin_folder.parent)), "the wheel's, not the checkout's"

    run(bin_folder, tmp_path, "renege-ray", "train-global", "--optim.steps", "5", *SMALL, "--output-dir", "trained")
    embedding = "trained/negative_embedding.safetensors"
    assert summary(tmp_path / "trained")["status"] == "finished" and (tmp_path / embedding).is_file()

    # Ray and the jobs are the same in a checkout; what a wheel may lack are files, and these plans read them.
    said = run(bin_folder, tmp_path, "renege-ray", "sweep", "--trials", "2", *SMALL, "--dry-run")
    assert "2 trials by tpe" in said
    methods = ["--method", "null", "--method", f"global={embedding}"]
    assert "2 methods on 4 prompts" in run(
        bin_folder, tmp_path, "renege-ray", "evaluate", *methods, "--num-prompts", "4", "--dry-run"
    )
    assert {path.name for path in tmp_path.iterdir()} >= {"trained", "mlflow.db"}
