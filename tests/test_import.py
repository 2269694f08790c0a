"""What may import what, read from the source, and what an import costs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import renege_ray

ROOT = Path(renege_ray.__file__).parents[1]
# A room is a folder of the package, or a file at its root; it may import those of the lines below its own.
ROOMS = (
    "jobs benchmarks",
    "__main__",
    "cluster __init__",
    "evaluation",
    "embeddings",
    "sweeps tuning",
    "training",
    "sampling",
    "rewards prompts",
    "models",
    "config",
    "output method",
    "errors version",
)
ROOMS_OF_CLUSTER = (
    "sweep",
    "pipelines",
    "training",
    "job",
    "plan",
    "tiers",
    "flops",
    "compilation",
    "cost",
    "session tracking",
)
PLATFORM = {"ray", "mlflow", "optuna"}
KNOWS_THE_PLATFORM = {"cluster", "benchmarks"}
NEEDED_BY_THE_METHOD = {"torch", "safetensors", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Import:
    """`name` is that of a module of ours, or of another package as it is written."""

    module: str
    line: int
    name: str


class Sources:
    """The modules of the package, the jobs and the benchmarks in a folder, and all that they import, wherever it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        files = (file for top in ("renege_ray", "jobs", "benchmarks") for file in sorted((root / top).rglob("*.py")))
        self.files = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
        self.trees = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in self.files.items()}

    @cached_property
    def imports(self) -> list[Import]:
        return [found for module in self.files for found in self._imports_of(module)]

    def _imports_of(self, module: str) -> Iterator[Import]:
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, node.lineno, self._as_module(alias.name) or alias.name)
            elif isinstance(node, ast.ImportFrom):
                around = module.split(".")[: -node.level] if node.level else []
                base = ".".join([*around, *([node.module] if node.module else [])])
                for alias in node.names:
                    found = self._as_module(f"{base}.{alias.name}") or self._as_module(base)
                    yield Import(module, node.lineno, found or base)

    def _as_module(self, name: str) -> str | None:
        return next((module for module in (name, f"{name}.__init__") if module in self.files), None)

    def shown(self, found: Import) -> str:
        return f"{self.files[found.module].relative_to(self.root)}:{found.line} imports {found.name}"

    def circle(self) -> list[str]:
        """Files of which each imports the next, and the last is the first.

        Who imports a module imports the packages around it, too. That counts where these hold more than names of what
        is in them; the package's own public names are found when they are used.
        """
        graph = {module: {self._around(module)} - {None} for module in self.files}
        for found in self.imports:
            if found.name in self.files and found.name != "renege_ray.__init__":
                graph[found.module].add(found.name)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            return [str(self.files[module].relative_to(self.root)) for module in reversed(error.args[1])]
        return []

    def _around(self, module: str) -> str | None:
        """The nearest package around a module that holds code."""
        folder = module.removesuffix(".__init__").rpartition(".")[0]
        while "." in folder:
            package = f"{folder}.__init__"
            if package in self.files and any(map(_is_code, self.trees[package].body)):
                return package
            folder = folder.rpartition(".")[0]
        return None


def _is_code(node: ast.stmt) -> bool:
    """Neither a docstring, nor an import, nor a list of names."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    return not (docstring or names or isinstance(node, ast.Import | ast.ImportFrom))


def room_of(module: str) -> str:
    parts = module.split(".")
    return (parts[1] if len(parts) > 1 else "__init__") if parts[0] == "renege_ray" else parts[0]


def wrong_rooms(sources: Sources, inside: str, rooms: Sequence[str]) -> list[str]:
    """The imports that go up or sideways between the rooms of a package ("" is all), and the rooms without a line."""
    lines = {room: number for number, line in enumerate(rooms) for room in line.split()}
    prefix = inside and f"{inside}."

    def room(module: str) -> str:
        return room_of(f"renege_ray.{module.removeprefix(prefix)}" if prefix else module)

    within = [module for module in sources.files if module.startswith(prefix) and module != f"{inside}.__init__"]
    wrong = [f"{module}: the table has no room {room(module)!r}" for module in within if room(module) not in lines]
    for found in sources.imports:
        ours = found.name.split(".")[0] in {"renege_ray", "jobs", "benchmarks", "tests", "integrations"}
        if not ours or not found.module.startswith(prefix) or not found.name.startswith(prefix):
            continue
        here, there = room(found.module), room(found.name)
        if here != there and lines.get(here, len(rooms)) >= lines.get(there, -1):
            wrong.append(sources.shown(found))
    return wrong


def wrong_packages(sources: Sources) -> list[str]:
    """The imports of other packages where they are not wanted."""
    wrong = []
    for found in sources.imports:
        top, room = found.name.split(".")[0], room_of(found.module)
        foreign = room == "method" and top not in NEEDED_BY_THE_METHOD and top != "renege_ray"
        if foreign or (top in PLATFORM and room not in KNOWS_THE_PLATFORM):
            wrong.append(sources.shown(found))
    return wrong


def complaints(root: Path) -> list[str]:
    sources = Sources(root)
    circle = sources.circle()
    return [
        *wrong_rooms(sources, "", ROOMS),
        *wrong_rooms(sources, "renege_ray.cluster", ROOMS_OF_CLUSTER),
        *wrong_packages(sources),
        *([f"a circle: {' -> '.join(circle)}"] if circle else []),
    ]


def test_imports_go_one_way() -> None:
    found = complaints(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_the_package_is_easy_to_find_ones_way_in() -> None:
    package = ROOT / "renege_ray"
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    files = {folder: [path for path in folder.iterdir() if path.is_file()] for folder in folders}
    crowded = {str(folder.relative_to(ROOT)): len(found) for folder, found in files.items() if len(found) > 16}
    assert not crowded
    assert len(files[package]) <= 5
    assert len([path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]) <= 13


FORBIDDEN = {
    "in a function": ("method/a.py", "def f():\n    from renege_ray.models.b import x", "renege_ray.models.b"),
    "relative": ("config/a.py", "from ..models import b", "renege_ray.models.b"),
    "relative, of a package": ("config/__init__.py", "from ..models.b import x", "renege_ray.models.b"),
    "for type checkers": ("config/a.py", "if TYPE_CHECKING:\n    import renege_ray.models.b", "renege_ray.models.b"),
    "sideways": ("rewards/a.py", "from renege_ray.prompts import b", "renege_ray.prompts.b"),
    "of the facade": ("models/a.py", "from renege_ray import load_model", "renege_ray"),
    "of a job": ("cluster/job.py", "from jobs.sweep import run", "jobs.sweep"),
    "within cluster": ("cluster/session/a.py", "import renege_ray.cluster.sweep.b", "renege_ray.cluster.sweep.b"),
    "of the platform": ("evaluation/a.py", "import ray.data", "ray.data"),
    "of the platform by a job": ("../jobs/a.py", "from optuna import Study", "optuna"),
    "by the method": ("method/a.py", "import numpy as np", "numpy"),
}  # fmt: skip
CIRCLES = {
    "in a function": {"b": "def f():\n    from renege_ray.models import c", "c": "from .b import f"},
    "by a package that holds code": {"toy/__init__": "from .c import f\nX = f()", "toy/c": ""},
}


def write_package(folder: Path, files: dict[str, str]) -> Path:
    others = dict.fromkeys(("models/b.py", "prompts/b.py", "cluster/sweep/b.py", "errors.py"), "")
    for name, text in (others | files).items():
        path = folder / "renege_ray" / name
        for parent in (folder / "renege_ray", path.parent):
            parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(("file", "text", "name"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_is_found(file: str, text: str, name: str, tmp_path: Path) -> None:
    (complaint,) = complaints(write_package(tmp_path, {file: text}))
    assert f"{file.removeprefix('../')}:{len(text.splitlines())} imports {name}" in complaint


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_a_circle_is_found(files: dict[str, str], tmp_path: Path) -> None:
    (complaint,) = complaints(write_package(tmp_path, {f"models/{name}.py": text for name, text in files.items()}))
    one, other = (f"renege_ray/models/{name}.py" for name in files)
    assert complaint in (f"a circle: {one} -> {other} -> {one}", f"a circle: {other} -> {one} -> {other}")


@pytest.mark.parametrize("place", ["", "cluster/"])
def test_a_room_without_a_line_is_found(place: str, tmp_path: Path) -> None:
    (complaint,) = complaints(write_package(tmp_path, {f"{place}attic/a.py": ""}))
    assert "attic.a: the table has no room 'attic'" in complaint


def test_a_sound_package_is_not_complained_of(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from renege_ray.method.b import f\nX = 1",
        "method/__init__.py": '"""Names."""\nfrom renege_ray.method.b import f\n__all__ = ["f"]',
        "method/a.py": "import math\nimport torch.nn\nfrom . import b",
        "method/b.py": "from renege_ray.errors import UserError",
        "models/toy/__init__.py": "X = 1",
        "models/toy/c.py": "from renege_ray.models.toy import X\nfrom renege_ray.method import f",
        "cluster/sweep/a.py": "import ray\nfrom renege_ray.cluster.session.b import x",
        "cluster/session/b.py": "import renege_ray.models.b",
    }
    assert complaints(write_package(tmp_path, files)) == []


def modules_after(code: str) -> set[str]:
    report = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_is_light() -> None:
    heavy = PLATFORM | {"diffusers", "transformers", "pydantic"}
    assert not modules_after("import renege_ray") & (heavy | {"torch"})
    with_the_method = modules_after("import renege_ray.method")
    assert "torch" in with_the_method and not with_the_method & heavy


@pytest.mark.slow
def test_using_every_public_name_brings_in_no_platform() -> None:
    code = "import renege_ray\nfor name in renege_ray.__all__: getattr(renege_ray, name)"
    assert not modules_after(code) & PLATFORM


def test_public_names_are_listed_and_others_are_refused() -> None:
    assert set(renege_ray.__all__) <= set(dir(renege_ray))
    assert renege_ray.UserError is __import__("renege_ray.errors", fromlist=["UserError"]).UserError
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = renege_ray.nonsense
