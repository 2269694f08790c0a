"""YAML for configurations: read strictly, written so that what is read again is the same.

PyYAML follows YAML 1.1, where ``no`` is a boolean, ``1:30`` a number, ``5e-3`` a text, and a key given twice
wins silently. Here scalars follow YAML 1.2's core schema and a repeated key is an error.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from renege_ray.errors import UserError
from renege_ray.output.whole_files import whole_file

_CORE_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """Safe, YAML 1.2 scalars, no repeated keys."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (declared in PyYAML: none of YAML 1.1's)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would take for something else."""


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # in YAML 1.1 a leading zero would mean octal


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
for _tag, (_pattern, _first) in _CORE_SCALARS.items():
    _regexp = re.compile(f"^(?:{_pattern})$")
    _starts = [*_first, ""] if _tag.endswith("null") else list(_first)
    _Loader.add_implicit_resolver(_tag, _regexp, _starts)
    _Dumper.add_implicit_resolver(_tag, _regexp, _starts)


def parse_yaml(text: str, source: str) -> Any:
    """The value that `text` stands for. Raises UserError naming `source` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}: not valid YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a list or a map as a key
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def yaml_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line, from 1 up, of each value of valid YAML, under its path of keys and places in lists."""
    lines: dict[tuple[str | int, ...], int] = {}

    def visit(node: yaml.Node | None, path: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[(*path, key.value)] = key.start_mark.line + 1
                visit(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for place, item in enumerate(node.value):
                lines[(*path, place)] = item.start_mark.line + 1
                visit(item, (*path, place))

    visit(yaml.compose(text, Loader=_Loader), ())
    return lines


def read_text(path: Path) -> str:
    """The text of a file that the user named. Raises UserError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file, such as {path / 'config.yaml'}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The map in the file at `path`. Raises UserError if there is no such file or it holds something else."""
    data = parse_yaml(read_text(path), str(path))
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{path}: holds no settings; give a map such as 'optim: {{lr: 5e-3}}'")
    return data


def write_yaml(path: Path, data: dict[str, Any], comment: str = "") -> None:
    """Write `data` atomically: a reader finds the old file or the whole new one, never a part."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    head = f"# {comment}\n" if comment else ""
    with whole_file(path) as temporary:
        temporary.write_text(head + text, encoding="utf-8")
