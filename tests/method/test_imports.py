import ast
import subprocess
import sys
from pathlib import Path

import pytest

import renege_ray.method

FILES = sorted(Path(renege_ray.method.__file__).parent.glob("*.py"))
ALLOWED = {"torch", "safetensors", *sys.stdlib_module_names}


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_method_imports_torch_and_safetensors_alone(path: Path) -> None:
    for name in imported(path.read_text(encoding="utf-8")):
        ours = name == "renege_ray.errors" or name.startswith("renege_ray.method")
        assert ours or name.split(".")[0] in ALLOWED, f"{path.name} imports {name}"


def test_nothing_else_is_loaded_with_it() -> None:
    code = "import sys, renege_ray.method; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"ray", "mlflow", "optuna", "diffusers", "transformers", "pydantic"}
    assert "torch" in loaded and not heavy & set(loaded)
