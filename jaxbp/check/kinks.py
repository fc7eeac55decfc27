"""Ties: arguments at which a function has a kink, and its derivative is a matter of choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.core import Tracer

from jaxbp.check.operations import Constant, Editor, Op, Place, is_float
from jaxbp.check.program import Program
from jaxbp.check.sample import Point

TWO_SIDED = {"max", "min", "gt", "ge", "lt", "le", "eq", "ne", "clamp"}
AT_ZERO = {"abs", "sign", "relu", "sqrt", "floor", "ceil", "round"}
OVER_AXES = {
    "reduce_max",
    "reduce_min",
    "argmax",
    "argmin",
    "cummax",
    "cummin",
    "sort",
    "reduce_window_max",
}
KINKED = TWO_SIDED | AT_ZERO | OVER_AXES
CLOSE = 1e-9


@dataclass(frozen=True)
class Tie:
    """An operation whose operands are equal, or whose operand is at its kink."""

    operation: str
    place: Place
    count: int

    def __str__(self) -> str:
        return f"{self.count} tie{'s' * (self.count != 1)} in `{self.operation}` at {self.place}"


class _Watch(Editor):
    def __init__(self, program: Program):
        self.depends = dependent(program)
        self.matters = mattering(program)
        self.found: list[Tie] = []

    def operands(self, op: Op, values: list[Any]) -> list[Any]:
        kinked = op.name in KINKED or op.primitive.name in KINKED
        if kinked and any(o in self.matters for o in op.outputs):
            live = [
                not isinstance(v, Constant) and v in self.depends and is_float(x)
                for v, x in zip(op.inputs, values, strict=True)
            ]
            if any(live) and not any(isinstance(v, Tracer) for v in values):
                count = _count(
                    op, [np.asarray(v, np.float64) if is_float(v) else v for v in values], live
                )
                if count:
                    self.found.append(Tie(op.name, op.place, count))
        return values


def ties(program: Program, leaves: list[Any]) -> list[Tie]:
    """The ties at these arguments, outside of loop bodies."""
    watch = _Watch(program)
    program.run(leaves, watch)
    return watch.found


def dependent(program: Program) -> set[int]:
    """The values that depend on the arguments, in a way that is differentiated."""
    reached = set(program.scope.inputs)
    for op in program.scope.ops:
        if op.primitive.name == "stop_gradient":
            continue
        if any(not isinstance(v, Constant) and v in reached for v in op.inputs):
            reached.update(op.outputs)
    return reached


def mattering(program: Program) -> set[int]:
    """The values that go into the result by a way that is differentiated: not a softmax's own maximum."""
    wanted = {v for v in program.scope.outputs if isinstance(v, int)}
    for op in reversed(program.scope.ops):
        if op.primitive.name != "stop_gradient" and any(o in wanted for o in op.outputs):
            wanted.update(v for v in op.inputs if isinstance(v, int))
    return wanted


def _count(op: Op, values: list[Any], live: list[bool]) -> int:
    name = op.name if op.name in KINKED else op.primitive.name
    if name in AT_ZERO:
        return int(np.sum(np.abs(values[0]) <= CLOSE * _scale(values[0])))
    if name in TWO_SIDED:
        if name == "clamp":
            low, x, high = values
            return int(np.sum((x == low) | (x == high)))
        a, b = values[0], values[1]
        if not all(is_float(v) for v in (a, b)):
            return 0
        return int(np.sum(np.abs(a - b) <= CLOSE * max(_scale(a), _scale(b))))
    if name in ("reduce_max", "reduce_min"):
        axes = tuple(op.params["axes"])
        extreme = (np.max if name == "reduce_max" else np.min)(values[0], axis=axes, keepdims=True)
        equal = np.abs(values[0] - extreme) <= CLOSE * _scale(values[0])
        return int(np.sum(np.sum(equal, axis=axes) > 1))
    flat = np.sort(values[0].reshape(-1))
    return int(np.sum(np.diff(flat) <= CLOSE * _scale(flat)))


def _scale(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return float(np.mean(finite)) if finite.size else 0.0


def nudge(point: Point, seed: int) -> Point:
    """The point, moved a little in every entry, so that nothing is equal by accident."""
    rng = np.random.default_rng([seed, 3])
    moved = []
    for leaf in point.leaves:
        size = 1e-2 * (float(np.mean(np.abs(leaf.astype(np.float64)))) if leaf.size else 0.0) or 1e-2
        moved.append(
            (leaf.astype(np.float64) + size * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        )
    return Point(f"{point.label}, moved off a kink", moved, point.dy)
