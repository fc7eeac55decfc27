"""What a function is taken apart into: named numbers (`Stage`), and arrays of them (`Value`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp.explain.symbols import Expr


@dataclass
class Stage:
    """One named number: `name = formula = value`, and its derivative by each operand that varies.

    `operands` are numbers of other stages, `slopes` the formula and the number of `∂stage/∂operand`.
    """

    number: int
    formula: Expr | None
    value: float
    operands: tuple[int, ...] = ()
    slopes: tuple[tuple[Expr, float], ...] = ()
    name: str = ""
    kind: str = ""
    tie: bool = False


@dataclass
class Value:
    """An array in the jaxpr: its numbers, and the stage of each entry (-1 where it is a constant)."""

    array: np.ndarray
    stage: np.ndarray

    @staticmethod
    def constant(array: Any) -> Value:
        array = np.asarray(array)
        return Value(array, np.full(array.shape, -1))


def bind(equation: Any, arrays: Sequence[Any]) -> list[np.ndarray]:
    """An equation of a jaxpr, carried out on arrays."""
    out = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
    out = out if equation.primitive.multiple_results else [out]
    return [np.asarray(a) for a in out]
