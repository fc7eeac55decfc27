"""Derivatives that are written in the place of another function's, by mistake: a table of slopes.

`SLOPES` are derivatives in the input; `IN_THE_OUTPUT` formulas that are meant for the output. All in
numpy: a guess costs no compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

Slope = Callable[[np.ndarray], np.ndarray]


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(a / 2))


def _bell(a: np.ndarray) -> np.ndarray:
    return np.exp(-a * a / 2) / math.sqrt(2 * math.pi)


def _below(a: np.ndarray) -> np.ndarray:
    """The normal distribution function."""
    return np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)), otypes=[float])(a)


def _tanh_gelu(a: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * a * a)
    return 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * inner


def _swish(beta: float) -> Slope:
    def slope(a: np.ndarray) -> np.ndarray:
        s = sigmoid(beta * a)
        return s + beta * a * s * (1 - s)

    return slope


def _mish(a: np.ndarray) -> np.ndarray:
    t = np.tanh(np.logaddexp(0, a))
    return t + a * (1 - t * t) * sigmoid(a)


def _leaky(k: float) -> Slope:
    return lambda a: np.where(a > 0, 1.0, k)


SELU = 1.0507009873554805
SLOPES: dict[str, Slope] = {
    "the identity": np.ones_like,
    "tanh": lambda a: 1 - np.tanh(a) ** 2,
    "sigmoid": lambda a: sigmoid(a) * (1 - sigmoid(a)),
    "relu": lambda a: np.where(a > 0, 1.0, 0.0),
    "leaky relu (0.01)": _leaky(0.01),
    "leaky relu (0.1)": _leaky(0.1),
    "leaky relu (0.2)": _leaky(0.2),
    "leaky relu (0.3)": _leaky(0.3),
    "elu": lambda a: np.where(a > 0, 1.0, np.exp(np.minimum(a, 0))),
    "selu": lambda a: SELU * np.where(a > 0, 1.0, 1.6732632423543772 * np.exp(np.minimum(a, 0))),
    "softplus": sigmoid,
    "silu": _swish(1.0),
    "the exact (erf) gelu": lambda a: _below(a) + a * _bell(a),
    "the tanh gelu": _tanh_gelu,
    "the quick gelu": _swish(1.702),
    "mish": _mish,
    "hard tanh": lambda a: np.where(np.abs(a) < 1, 1.0, 0.0),
    "hard sigmoid": lambda a: np.where(np.abs(a) < 3, 1 / 6, 0.0),
    "relu6": lambda a: np.where((a > 0) & (a < 6), 1.0, 0.0),
    "softsign": lambda a: 1 / (1 + np.abs(a)) ** 2,
    "exp": np.exp,
    "log": lambda a: 1 / a,
    "sin": np.cos,
    "cos": lambda a: -np.sin(a),
    "-cos": np.sin,
    "the square": lambda a: 2 * a,
    "half the square": lambda a: a,
    "the cube": lambda a: 3 * a * a,
    "the square root": lambda a: 0.5 / np.sqrt(np.abs(a)) * np.sign(a),
    "the reciprocal": lambda a: -1 / (a * a),
    "the reciprocal square root": lambda a: -0.5 * np.abs(a) ** -1.5,
    "the absolute value": np.sign,
    "sinh": np.cosh,
    "cosh": np.sinh,
    "the arctangent": lambda a: 1 / (1 + a * a),
    "log(1 + a)": lambda a: 1 / (1 + a),
    "erf": lambda a: 2 / math.sqrt(math.pi) * np.exp(-a * a),
    "the normal distribution function": _bell,
}
IN_THE_OUTPUT: dict[str, Slope] = {
    "h(1 - h)": lambda h: h * (1 - h),
    "1 - h²": lambda h: 1 - h * h,
    "1 - h": lambda h: 1 - h,
    "h": lambda h: h,
    "1 - e⁻ʰ": lambda h: -np.expm1(-h),
    "1/(2h)": lambda h: 0.5 / h,
    "-h²": lambda h: -h * h,
    "√(1 - h²)": lambda h: np.sqrt(1 - h * h),
}
OF_ITS_OUTPUT = {"logistic": "h(1 - h)", "tanh": "1 - h²", "exp": "h", "sqrt": "1/(2h)"}


def alternatives() -> Iterator[tuple[str, str, Callable[[np.ndarray, np.ndarray], np.ndarray]]]:
    """`(words, cause, slope(a, h))` of input and output, for every formula here."""
    for name, fn in SLOPES.items():
        yield f"of {name}", "wrong-activation", lambda a, h, fn=fn: fn(a)
    for formula, fn in IN_THE_OUTPUT.items():
        if formula == "h":
            continue
        words = f"by the formula {formula}, which is meant for the output, at the input"
        yield words, "wrong-point", lambda a, h, fn=fn: fn(a)
    for formula, fn in IN_THE_OUTPUT.items():
        yield (
            f"by the formula {formula} of another function",
            "wrong-activation",
            lambda a, h, fn=fn: fn(h),
        )
    for name, fn in SLOPES.items():
        yield f"of {name}, at the output", "wrong-point", lambda a, h, fn=fn: fn(h)
