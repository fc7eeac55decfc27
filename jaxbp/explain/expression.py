"""Expressions from the command line, read and never run as code.

Python's own parser makes a tree; only numbers, names, arithmetic and the functions listed here are let
through. There are no attributes, subscripts, strings, comprehensions or keyword arguments, so there is
nothing to reach but these functions.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from jaxbp.layer import InputError

LONGEST, DEEPEST, HIGHEST = 500, 100, 64

FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "exp": (jnp.exp, 1), "log": (jnp.log, 1), "sqrt": (jnp.sqrt, 1), "abs": (jnp.abs, 1),
    "sin": (jnp.sin, 1), "cos": (jnp.cos, 1), "tan": (jnp.tan, 1),
    "asin": (jnp.arcsin, 1), "acos": (jnp.arccos, 1), "atan": (jnp.arctan, 1), "atan2": (jnp.arctan2, 2),
    "sinh": (jnp.sinh, 1), "cosh": (jnp.cosh, 1), "tanh": (jnp.tanh, 1),
    "sigmoid": (jax.nn.sigmoid, 1), "erf": (erf, 1), "relu": (jax.nn.relu, 1),
    "max": (jnp.maximum, 2), "min": (jnp.minimum, 2),
}  # fmt: skip
CONSTANTS = {"pi": 3.141592653589793, "e": 2.718281828459045}
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def parse(expression: str) -> tuple[list[str], Callable[..., Any]]:
    """`(names, f)`: the variables in order of appearance, and a function of them.

    Raises `InputError` for anything but arithmetic (`+ - * / **`) on numbers, names and the functions in
    `FUNCTIONS`, and for expressions that are too long or too deep.
    """
    if len(expression) > LONGEST:
        raise InputError(f"--expr: expected at most {LONGEST} characters, got {len(expression)}")
    try:
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"--expr: cannot read {expression!r}: {error}") from None
    names: list[str] = []
    _check(tree.body, names, 0)

    def f(*values: Any) -> Any:
        return jnp.asarray(_value(tree.body, dict(zip(names, values, strict=True))), jnp.float64)

    return names, f


def _refuse(node: ast.AST, what: str) -> InputError:
    return InputError(f"--expr: {what} at column {getattr(node, 'col_offset', 0) + 1}")


def _check(node: ast.expr, names: list[str], depth: int) -> None:
    """Let through what is on the list, and nothing else."""
    if depth > DEEPEST:
        raise _refuse(node, f"nested more than {DEEPEST} deep")
    match node:
        case ast.Constant(value=bool()):
            raise _refuse(node, "expected a number, got a truth value")
        case ast.Constant(value=int() | float()):
            if not abs(node.value) < 1e300:  # pyright: ignore[reportArgumentType, reportOperatorIssue]
                raise _refuse(node, "a number that is too large")
        case ast.Name(id=label):
            if label in FUNCTIONS:
                raise _refuse(node, f"{label} is a function; expected {label}(…)")
            if label not in CONSTANTS and label not in names:
                names.append(label)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=part):
            _check(part, names, depth + 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS or isinstance(op, ast.Pow):
            _check(left, names, depth + 1)
            _check(right, names, depth + 1)
        case ast.Call(func=ast.Name(id=label), args=args, keywords=[]) if label in FUNCTIONS:
            if len(args) != FUNCTIONS[label][1]:
                raise _refuse(node, f"{label} takes {FUNCTIONS[label][1]} arguments, got {len(args)}")
            for part in args:
                _check(part, names, depth + 1)
        case ast.Call(func=ast.Name(id=label)):
            raise _refuse(node, f"no function {label!r} (there are {', '.join(FUNCTIONS)})")
        case _:
            raise _refuse(
                node, f"{type(node).__name__} is not arithmetic; expected numbers, names and functions"
            )


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=label):
            return known[label] if label in known else CONSTANTS[label]
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_value(part, known)
        case ast.UnaryOp(operand=part):
            return _value(part, known)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            if isinstance(left, ast.Name) and left.id == "e" and "e" not in known:
                return jnp.exp(jnp.asarray(_value(right, known), jnp.float64))  # eˣ as it is written
            return _power(_value(left, known), right, known)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, known), _value(right, known)
            if isinstance(op, ast.Div) and not isinstance(b, jax.Array) and b == 0:
                raise InputError("--expr: division by zero")
            return OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Name(id=label), args=args):
            return FUNCTIONS[label][0](*(jnp.asarray(_value(part, known), jnp.float64) for part in args))
    raise _refuse(node, f"{type(node).__name__} is not arithmetic")


def _power(base: Any, right: ast.expr, known: Mapping[str, Any]) -> Any:
    """Small whole exponents stay whole (`x²` is one stage), others become `pow`."""
    exponent = _value(right, known)
    base = jnp.asarray(base, jnp.float64)
    if (
        isinstance(exponent, float)
        and exponent == int(min(max(exponent, -1e9), 1e9))
        and abs(exponent) <= HIGHEST
    ):
        return base ** int(exponent)
    return jnp.power(base, jnp.asarray(exponent, jnp.float64))
