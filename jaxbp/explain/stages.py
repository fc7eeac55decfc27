"""What a function is taken apart into: named numbers (`Stage`), and arrays of them (`Value`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp.explain.symbols import ONE, Expr, add, mul, name, num
from jaxbp.layer import InputError

MOST = 4000


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


@dataclass
class Stages:
    """Stages in order of evaluation, and how one is added. Formulas name a stage `@7` until the end."""

    stages: list[Stage] = field(default_factory=list)

    def label(self, stage: int, value: float) -> Expr:
        return name(f"@{stage}") if stage >= 0 else num(value)

    def new(self, formula: Any, value: float, operands: Any, slopes: Any, kind: str) -> int:
        if len(self.stages) >= MOST:
            raise InputError(
                f"explain_function: more than {MOST} numbers in the computation; "
                "for networks, explain_weight answers without listing them"
            )
        self.stages.append(Stage(len(self.stages), formula, value, operands, slopes, kind=kind))
        return len(self.stages) - 1

    def sum_of(self, terms: list[tuple[int, float, int, float]], value: float, kind: str) -> int:
        """`Σ a b` over `(stage a, value a, stage b, value b)`; where b is the constant 1, `Σ a`."""
        parts, operands, slopes = [], [], []
        for stage_a, a, stage_b, b in terms:
            left, right = self.label(stage_a, a), self.label(stage_b, b)
            parts.append(mul(left, right))
            for stage, slope, number in ((stage_a, right, b), (stage_b, left, a)):
                if stage >= 0:
                    operands.append(stage)
                    slopes.append((slope, number))
        if not operands:
            return -1
        if len(terms) == 1 and len(operands) == 1 and slopes[0][0] == ONE:
            return operands[0]
        formula = add(*parts) if len(parts) > 1 else parts[0]
        return self.new(formula, value, tuple(operands), tuple(slopes), kind)
