"""Constraints between settings, as comparisons in a small expression language.

    optim.steps * optim.batch_size <= 2 * preset.optim.steps * preset.optim.batch_size
    sampling.gradient_steps[1] - sampling.gradient_steps[0] >= optim.gradients_per_rollout

Names are configuration fields with numbers; after `preset.` they mean the preset's values. There are + - * / // ( ),
[place] of a list, min, max and abs, and one comparison of < <= > >=. Nothing else is evaluated.
"""

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from renege_ray.config.faults import did_you_mean

PRESET = "preset."

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "abs": abs}
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


@dataclass(frozen=True)
class Constraint:
    """left < right, or with <=, > or >=."""

    text: str
    _left: ast.expr
    _right: ast.expr
    _sign: int
    _strict: bool

    def violation(self, values: Mapping[str, Any]) -> float:
        """How far the settings {dotted name: value} are from meeting it; at most 0 where they do.

        Raises:
            ValueError: it cannot be computed, for example a division by zero.
        """
        try:
            excess = float(self._sign * (_evaluate(self._left, values) - _evaluate(self._right, values)))
        except (ArithmeticError, TypeError, IndexError) as error:
            raise ValueError(f"{self.text!r} cannot be computed: {error}") from None
        # Equal sides do not meet a strict comparison.
        return max(excess, 5e-324) if self._strict and excess == 0 else excess


def parse_constraint(text: str, known: Collection[str]) -> Constraint:
    """The constraint that a text stands for.

    Args:
        text: one comparison.
        known: the dotted names that it may use, also after `preset.`.

    Raises:
        ValueError: it is something else; the message says what, and suggests the nearest name.
    """
    example = "for example optim.steps * optim.batch_size <= 3200"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no expression ({error.msg}); {example}") from None
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or not isinstance(tree.ops[0], _COMPARISONS):
        raise ValueError(f"{text!r} is not one comparison by <, <=, > or >=; {example}")
    _check(tree.left, known)
    _check(tree.comparators[0], known)
    sign = 1 if isinstance(tree.ops[0], ast.Lt | ast.LtE) else -1
    return Constraint(text, tree.left, tree.comparators[0], sign, isinstance(tree.ops[0], ast.Lt | ast.Gt))


def _check(node: ast.expr, known: Collection[str]) -> None:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            pass
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            _check(node.left, known)
            _check(node.right, known)
        case ast.UnaryOp(op=ast.USub()):
            _check(node.operand, known)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS and node.args:
            for argument in node.args:
                _check(argument, known)
        case ast.Subscript(slice=ast.Constant(value=int())):
            _check(node.value, known)
        case ast.Attribute() | ast.Name():
            name = _dotted(node)
            if name.removeprefix(PRESET) not in known:
                hint = did_you_mean(name.removeprefix(PRESET), known)
                raise ValueError(f"{name}: there is no such field; {hint}".rstrip("; "))
        case _:
            raise ValueError(
                f"{ast.unparse(node)!r} is not allowed here; use numbers, fields, + - * / //, [place], min, max, abs"
            )


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
        case ast.UnaryOp():
            return -_evaluate(node.operand, values)
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTIONS[name](*(_evaluate(argument, values) for argument in node.args))
        case ast.Subscript(slice=ast.Constant(value=place)):
            return _evaluate(node.value, values)[place]
        case _:
            return values[_dotted(node)]


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)
