"""Spaces as Python files, for settings that are there only where others have certain values.

`space(trial)`, or `space(trial, preset)` with the preset's configuration, draws by `trial.suggest_*`. A parameter with
the dotted name of a field sets that field; a name without dots sets nothing by itself. What `space` returns, {dotted
name: value}, is set as well. Constants in capitals are the keys that a YAML space has (OBJECTIVES, TRIALS, ...);
DEFAULTS says what the preset's own settings are for names without dots. Constants that begin with _ are the file's own.
Where settings do not go together, `space` raises `renege_ray.sweeps.space.OutsideSpace`: such a trial does not begin.
"""

import ast
import hashlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from renege_ray.config.faults import fields, unknown_field
from renege_ray.config.run import RunConfig
from renege_ray.errors import UserError, describe
from renege_ray.sweeps.space.parameters import Values
from renege_ray.sweeps.space.place import Lines, Place
from renege_ray.sweeps.space.space import Drawing

DEFAULTS = "defaults"
FUNCTION = "space"


class PythonSpace(Drawing):
    """The `space` function of a file, at `place`.

    Attributes:
        constants: {name in small letters: value} of those in capitals.
    """

    def __init__(self, text: str, file: str, preset: RunConfig) -> None:
        """Execute the file. Raises UserError naming the line where that fails, or if there is no `space`."""
        try:
            code = compile(text, file, "exec")
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            raise UserError(f"{file}{f', line {line}' if line else ''}: not valid Python: {error.args[0]}") from None
        self._file, self._preset, self._known = file, preset, fields(RunConfig)
        namespace: dict[str, Any] = {"__name__": "renege_ray_search_space", "__file__": file}
        self._guarded(lambda: exec(code, namespace), "the file cannot be executed")
        lines = _lines(ast.parse(text))
        if not callable(namespace.get(FUNCTION)):
            raise UserError(f"{file}: has no function {FUNCTION}(trial); define one, or give a YAML file")
        self._function: Callable[..., Any] = namespace[FUNCTION]
        self._takes_preset = len(inspect.signature(self._function).parameters) > 1
        self.constants = {name.lower(): value for name, value in namespace.items() if name.isupper() and name[0] != "_"}
        self.place = Place(file, lines, (FUNCTION,))
        self._digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]

    def draw(self, trial: Any, values: Values) -> dict[str, Any]:
        """{dotted name: value} of what the function draws and returns.

        Raises:
            OutsideSpace: the function says so.
            UserError: it fails, or names a field that does not exist.
        """
        arguments = (trial, self._preset) if self._takes_preset else (trial,)
        returned = self._guarded(lambda: self._function(*arguments), f"{FUNCTION}(trial) failed")
        if not isinstance(returned, Mapping | None):
            self.place.fail(f"returns {type(returned).__name__}; return {{dotted field: value}}, or nothing")
        settings = {name: value for name, value in trial.params.items() if "." in name} | dict(returned or {})
        for name in settings:
            if name not in self._known and not str(name).startswith("rewards.train."):
                self.place.fail(unknown_field(str(name), RunConfig))
        return settings

    def stand_for(self, values: Values) -> dict[str, Any]:
        """The settings themselves, and the defaults that the file gives."""
        return dict(values) | dict(self.constants.get(DEFAULTS, {}))

    def described(self) -> dict[str, str]:
        """A hash: what the code does, only a trial tells."""
        return {"code": self._digest}

    def _guarded(self, call: Callable[[], Any], words: str) -> Any:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._file]
            line = f", line {frames[-1].lineno}" if frames else ""
            raise UserError(f"{self._file}{line}: {words}: {describe(error)}") from None


def _lines(tree: ast.Module) -> Lines:
    """The lines of the function and of the constants, by their names in small letters."""
    lines: dict[tuple[str | int, ...], int] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name):
                lines[(name,)] = node.lineno
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                lines[(name.lower(),)] = node.lineno
    return lines
