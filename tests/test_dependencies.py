"""What the package imports is what it declares."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = {"renege_ray", "benchmarks"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_declared_for_those_who_only_use_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonical(re.split(r"[\[<>=]", requirement)[0]) for requirement in project["dependencies"]}
    origins = packages_distributions()
    undeclared = set()
    for path in (path for folder in ("renege_ray", "jobs", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - OWN:
                if not declared & {canonical(origin) for origin in origins.get(name, [])}:
                    undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared
