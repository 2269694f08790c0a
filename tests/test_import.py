"""What may import what: the layers of the package, read from its source, and what an import costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import renege_ray

PACKAGE = Path(renege_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PLATFORM = {"ray", "mlflow", "optuna"}
USE_CASES = {"renege_ray.training.train", "renege_ray.sampling.images"}


def imported_names(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it; relative imports are made absolute."""
    package = ["renege_ray", *path.relative_to(PACKAGE).parent.parts]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(name == p or name.startswith(f"{p}.") for p in packages)}


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def modules_after(code: str) -> set[str]:
    report = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_cluster_knows_ray_mlflow_and_optuna(path: Path) -> None:
    if layer(path) != "cluster":
        assert not within(imported_names(path), *PLATFORM, "renege_ray.cluster")


@pytest.mark.parametrize("path", sorted((PACKAGE / "method").rglob("*.py")), ids=lambda path: path.name)
def test_the_method_needs_torch_and_safetensors_alone(path: Path) -> None:
    names = imported_names(path)
    outside = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert outside == within(outside, "torch", "safetensors", "renege_ray.errors", "renege_ray.method")


@pytest.mark.parametrize("package", ["models", "rewards"])
def test_models_and_rewards_know_no_use_case(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        assert not within(imported_names(path), *USE_CASES), path


def test_importing_the_package_is_light() -> None:
    assert not modules_after("import renege_ray") & (PLATFORM | {"torch", "diffusers", "transformers", "pydantic"})


@pytest.mark.slow
def test_using_every_public_name_brings_in_no_platform() -> None:
    code = "import renege_ray\nfor name in renege_ray.__all__: getattr(renege_ray, name)"
    assert not modules_after(code) & PLATFORM


def test_public_names_are_listed_and_others_are_refused() -> None:
    assert set(renege_ray.__all__) <= set(dir(renege_ray))
    assert renege_ray.UserError is __import__("renege_ray.errors", fromlist=["UserError"]).UserError
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = renege_ray.nonsense
