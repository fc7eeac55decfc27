"""Equations that combine many numbers into one: sums, products, extremes, dots, choices.

Each handler takes the stages so far (for new ones), the equation, and its inputs, and returns the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxbp.explain.stages import Stages, Value, bind
from jaxbp.explain.symbols import call, mul, num


def _reduced(v: Value, axes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """`(values, stages)` with the reduced entries in the last axis."""
    kept = [k for k in range(v.array.ndim) if k not in axes]
    shape = [v.array.shape[k] for k in kept]
    order = [*kept, *axes]
    return v.array.transpose(order).reshape(*shape, -1), v.stage.transpose(order).reshape(*shape, -1)


def _each(shape: tuple[int, ...], make: Callable[[Any], int]) -> np.ndarray:
    made = np.full(shape, -1)
    for at in np.ndindex(*shape):
        made[at] = make(at)
    return made


def _sum(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    values, stages = _reduced(inputs[0], equation.params["axes"])
    (result,) = bind(equation, [inputs[0].array])

    def one(at: Any) -> int:
        terms = [(int(s), float(v), -1, 1.0) for s, v in zip(stages[at], values[at], strict=True)]
        return reader.sum_of(terms, float(result[at]), "sum")

    return Value(result, _each(result.shape, one))


def _product(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    values, stages = _reduced(inputs[0], equation.params["axes"])
    (result,) = bind(equation, [inputs[0].array])

    def one(at: Any) -> int:
        names = [reader.label(int(s), float(v)) for s, v in zip(stages[at], values[at], strict=True)]
        which = [k for k, s in enumerate(stages[at]) if s >= 0]
        if not which:
            return -1
        others = [[m for m in range(len(names)) if m != k] for k in which]
        slopes = [(mul(*(names[m] for m in o)), float(np.prod(values[at][o]))) for o in others]
        operands = tuple(int(stages[at][k]) for k in which)
        return reader.new(mul(*names), float(result[at]), operands, tuple(slopes), "prod")

    return Value(result, _each(result.shape, one))


def _extreme(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    """Maximum or minimum over axes: 1 for the winner, shared equally in a tie, as JAX does."""
    values, stages = _reduced(inputs[0], equation.params["axes"])
    (result,) = bind(equation, [inputs[0].array])
    kind = "max" if "max" in equation.primitive.name else "min"

    def one(at: Any) -> int:
        names = [reader.label(int(s), float(v)) for s, v in zip(stages[at], values[at], strict=True)]
        which = [k for k, s in enumerate(stages[at]) if s >= 0]
        if not which:
            return -1
        wins = values[at] == result[at]
        share = wins / wins.sum()
        slopes = tuple((num(float(share[k])), float(share[k])) for k in which)
        operands = tuple(int(stages[at][k]) for k in which)
        made = reader.new(call(kind, *names), float(result[at]), operands, slopes, kind)
        reader.stages[made].tie = bool(wins.sum() > 1)
        return made

    return Value(result, _each(result.shape, one))


def _dot(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    (result,) = bind(equation, [v.array for v in inputs])

    def rows(v: Value, contract: Sequence[int], batch: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        free = [k for k in range(v.array.ndim) if k not in (*contract, *batch)]
        shape = v.array.shape
        sizes = [int(np.prod([shape[k] for k in group])) for group in (batch, free, contract)]
        order = [*batch, *free, *contract]
        return v.array.transpose(order).reshape(sizes), v.stage.transpose(order).reshape(sizes)

    a, stage_a = rows(inputs[0], contract_a, batch_a)
    b, stage_b = rows(inputs[1], contract_b, batch_b)
    flat = result.reshape(a.shape[0], a.shape[1], b.shape[1])

    def one(at: Any) -> int:
        n, i, j = at
        terms = zip(stage_a[n, i], a[n, i], stage_b[n, j], b[n, j], strict=True)
        whole = [(int(s), float(u), int(t), float(v)) for s, u, t, v in terms]
        return reader.sum_of(whole, float(flat[at]), "dot")

    return Value(result, _each(flat.shape, one).reshape(result.shape))


def _select(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    """`where`: the case that was chosen, derivative 1; the others do not reach the output."""
    which, *cases = inputs
    (result,) = bind(equation, [v.array for v in inputs])
    chosen = np.broadcast_to(which.array, result.shape).astype(int)
    stages = np.stack([np.broadcast_to(c.stage, result.shape) for c in cases])
    return Value(result, np.asarray(np.take_along_axis(stages, chosen[None], 0)[0]))


def _clamp(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    """`clamp(low, x, high)`: whichever of the three is the result."""
    (result,) = bind(equation, [v.array for v in inputs])
    low, x, high = (np.broadcast_to(v.array, result.shape) for v in inputs)
    stage_low, stage_x, stage_high = (np.broadcast_to(v.stage, result.shape) for v in inputs)
    return Value(result, np.where(x < low, stage_low, np.where(x > high, stage_high, stage_x)))


def _cumulative(reader: Stages, equation: Any, inputs: list[Value]) -> Value:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    (result,) = bind(equation, [inputs[0].array])
    value, stage = np.moveaxis(inputs[0].array, axis, -1), np.moveaxis(inputs[0].stage, axis, -1)
    out = np.moveaxis(result, axis, -1)

    def one(at: Any) -> int:
        *rest, k = at
        part = slice(k, None) if reverse else slice(0, k + 1)
        values, stages = value[tuple(rest)][part], stage[tuple(rest)][part]
        terms = [(int(s), float(v), -1, 1.0) for s, v in zip(stages, values, strict=True)]
        return reader.sum_of(terms, float(out[at]), "sum")

    return Value(result, np.moveaxis(_each(out.shape, one), -1, axis))


HANDLERS: dict[str, Callable[[Stages, Any, list[Value]], Value]] = {
    "reduce_sum": _sum,
    "reduce_prod": _product,
    "reduce_max": _extreme,
    "reduce_min": _extreme,
    "dot_general": _dot,
    "select_n": _select,
    "clamp": _clamp,
    "cumsum": _cumulative,
}
