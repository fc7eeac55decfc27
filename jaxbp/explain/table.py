"""The local derivatives that `explain_function` knows: one row a primitive, written by hand.

A row says how `y = f(a, b)` is written, and `∂y/∂a`, `∂y/∂b` as formulas and as numbers. The formulas
may use the output `y`, as in `∂tanh(a)/∂a = 1 - y²`. Numbers are NumPy's, so that at the edge of a
domain a derivative is ∞ or NaN, as it is in JAX, and not an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxbp.explain.symbols import ONE, Expr, add, call, div, exp, mul, name, neg, num, power, step, sub

TWO = num(2)


class Slope(NamedTuple):
    """`∂y/∂operand`: `formula(y, *operands)` and `number(y, *operands)`."""

    formula: Callable[..., Expr]
    number: Callable[..., float]


class Row(NamedTuple):
    """`y = write(*operands)` and one slope an operand."""

    write: Callable[..., Expr]
    slopes: tuple[Slope, ...]


def _one(function: str, formula: Callable[..., Expr], number: Callable[..., float]) -> Row:
    return Row(lambda a: call(function, a), (Slope(formula, number),))


def _square(a: Expr) -> Expr:
    return power(a, TWO)


def _root(a: Expr) -> Expr:
    return call("√", a)


def _flat(write: Callable[..., Expr]) -> Row:
    return Row(write, (Slope(lambda y, a: num(0), lambda y, a: 0.0),))


def _larger(a: float, b: float) -> float:
    """`∂max(a, b)/∂a`; a tie is shared, as JAX does."""
    return 1.0 if a > b else 0.5 if a == b else 0.0


def _power_base(y: float, a: float, b: float) -> float:
    """`b aᵇ⁻¹`, and 0 for `a⁰` whatever `a` is."""
    return b * a ** (b - 1) if b else 0.0


def _power_exponent(y: float, a: float, b: float) -> float:
    """`aᵇ log a`; where `a` is 0, the power is 0 for every exponent nearby."""
    return y * np.log(a) if a else 0.0


PLUS = Slope(lambda y, *_: ONE, lambda y, *_: 1.0)
MINUS = Slope(lambda y, *_: neg(ONE), lambda y, *_: -1.0)
ROOT_PI = 2 / np.sqrt(np.pi)


def _bell(a: Expr) -> Expr:
    return mul(div(TWO, _root(name("π"))), exp(neg(_square(a))))


# fmt: off
TABLE: dict[str, Row] = {
    "add": Row(add, (PLUS, PLUS)),
    "add_any": Row(add, (PLUS, PLUS)),
    "sub": Row(sub, (PLUS, MINUS)),
    "neg": Row(neg, (MINUS,)),
    "mul": Row(mul, (
        Slope(lambda y, a, b: b, lambda y, a, b: b),
        Slope(lambda y, a, b: a, lambda y, a, b: a))),
    "div": Row(div, (
        Slope(lambda y, a, b: div(ONE, b), lambda y, a, b: 1 / b),
        Slope(lambda y, a, b: neg(div(a, _square(b))), lambda y, a, b: -y / b))),
    "square": Row(_square, (Slope(lambda y, a: mul(TWO, a), lambda y, a: 2 * a),)),
    "pow": Row(power, (
        Slope(lambda y, a, b: mul(b, power(a, sub(b, ONE))), _power_base),
        Slope(lambda y, a, b: mul(y, call("log", a)), _power_exponent))),
    "exp": Row(exp, (Slope(lambda y, a: exp(a), lambda y, a: y),)),
    "exp2": Row(lambda a: power(TWO, a),
                (Slope(lambda y, a: mul(y, call("log", TWO)), lambda y, a: y * np.log(2)),)),
    "expm1": Row(lambda a: sub(exp(a), ONE), (Slope(lambda y, a: exp(a), lambda y, a: np.exp(a)),)),
    "log": _one("log", lambda y, a: div(ONE, a), lambda y, a: 1 / a),
    "log1p": Row(lambda a: call("log", add(ONE, a)),
                 (Slope(lambda y, a: div(ONE, add(ONE, a)), lambda y, a: 1 / (1 + a)),)),
    "sqrt": Row(_root, (Slope(lambda y, a: div(ONE, mul(TWO, y)), lambda y, a: 1 / (2 * y)),)),
    "rsqrt": Row(lambda a: div(ONE, _root(a)),
                 (Slope(lambda y, a: neg(div(power(y, num(3)), TWO)), lambda y, a: -(y ** 3) / 2),)),
    "cbrt": _one("∛", lambda y, a: div(ONE, mul(num(3), _square(y))), lambda y, a: 1 / (3 * y * y)),
    "sin": _one("sin", lambda y, a: call("cos", a), lambda y, a: np.cos(a)),
    "cos": _one("cos", lambda y, a: neg(call("sin", a)), lambda y, a: -np.sin(a)),
    "tan": _one("tan", lambda y, a: add(ONE, _square(y)), lambda y, a: 1 + y * y),
    "asin": _one("arcsin", lambda y, a: div(ONE, _root(sub(ONE, _square(a)))),
                 lambda y, a: 1 / np.sqrt(1 - a * a)),
    "acos": _one("arccos", lambda y, a: neg(div(ONE, _root(sub(ONE, _square(a))))),
                 lambda y, a: -1 / np.sqrt(1 - a * a)),
    "atan": _one("arctan", lambda y, a: div(ONE, add(ONE, _square(a))), lambda y, a: 1 / (1 + a * a)),
    "atan2": Row(lambda a, b: call("arctan2", a, b), (
        Slope(lambda y, a, b: div(b, add(_square(a), _square(b))), lambda y, a, b: b / (a * a + b * b)),
        Slope(lambda y, a, b: neg(div(a, add(_square(a), _square(b)))),
              lambda y, a, b: -a / (a * a + b * b)))),
    "sinh": _one("sinh", lambda y, a: call("cosh", a), lambda y, a: np.cosh(a)),
    "cosh": _one("cosh", lambda y, a: call("sinh", a), lambda y, a: np.sinh(a)),
    "tanh": _one("tanh", lambda y, a: sub(ONE, _square(y)), lambda y, a: (1 - y) * (1 + y)),
    "asinh": _one("arsinh", lambda y, a: div(ONE, _root(add(_square(a), ONE))),
                  lambda y, a: 1 / np.sqrt(a * a + 1)),
    "acosh": _one("arcosh", lambda y, a: div(ONE, _root(sub(_square(a), ONE))),
                  lambda y, a: 1 / np.sqrt(a * a - 1)),
    "atanh": _one("artanh", lambda y, a: div(ONE, sub(ONE, _square(a))), lambda y, a: 1 / (1 - a * a)),
    "logistic": _one("σ", lambda y, a: mul(y, sub(ONE, y)), lambda y, a: y * (1 - y)),
    "erf": _one("erf", lambda y, a: _bell(a), lambda y, a: ROOT_PI * np.exp(-a * a)),
    "erfc": _one("erfc", lambda y, a: neg(_bell(a)), lambda y, a: -ROOT_PI * np.exp(-a * a)),
    "abs": Row(lambda a: call("abs", a), (
        Slope(lambda y, a: call("sign", a), lambda y, a: np.sign(a)),)),
    "max": Row(lambda a, b: call("max", a, b), (
        Slope(lambda y, a, b: step(sub(a, b)) if b != num(0) else step(a), lambda y, a, b: _larger(a, b)),
        Slope(lambda y, a, b: step(sub(b, a)), lambda y, a, b: _larger(b, a)))),
    "min": Row(lambda a, b: call("min", a, b), (
        Slope(lambda y, a, b: step(sub(b, a)), lambda y, a, b: _larger(b, a)),
        Slope(lambda y, a, b: step(sub(a, b)), lambda y, a, b: _larger(a, b)))),
    "sign": _flat(lambda a: call("sign", a)),
    "floor": _flat(lambda a: call("floor", a)),
    "ceil": _flat(lambda a: call("ceil", a)),
    "round": _flat(lambda a: call("round", a)),
}
# fmt: on


def integer_power(n: int) -> Row:
    """`aⁿ`: `∂y/∂a = n aⁿ⁻¹`."""
    if n == 0:
        return _flat(lambda a: power(a, num(0)))
    if n == -1:
        return Row(
            lambda a: div(ONE, a),
            (Slope(lambda y, a: neg(div(ONE, _square(a))), lambda y, a: -y / a),),
        )
    slope = Slope(lambda y, a: mul(num(n), power(a, num(n - 1))), lambda y, a: n * a ** (n - 1))
    return Row(lambda a: power(a, num(n)), (slope,))
