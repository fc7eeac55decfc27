"""Reading a function's jaxpr into scalar stages, each with its local derivatives.

Arrays are taken apart: every real number is a stage of its own. Operations that only move numbers
(reshape, slice, gather, …) are run once on the stages' own indices, and make no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp.explain.symbols import ONE, Expr, add, call, mul, name, num
from jaxbp.explain.table import TABLE, Row, integer_power
from jaxbp.layer import InputError

MOST = 4000

MOVES = {
    "broadcast_in_dim", "concatenate", "dynamic_slice", "expand_dims", "gather", "rev", "reshape",
    "slice", "split", "squeeze", "transpose",
}  # fmt: skip
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
SAME = {
    "convert_element_type",
    "copy",
    "copy_p",
    "device_put",
    "reduce_precision",
    "optimization_barrier",
}


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


@dataclass
class Reader:
    """Walks a jaxpr; `stages` grows in order of evaluation. Formulas name a stage `@7` until the end."""

    stages: list[Stage] = field(default_factory=list)

    def input(self, array: np.ndarray) -> Value:
        made = [self._new(None, float(v), (), (), "input") for v in array.reshape(-1)]
        return Value(array, np.array(made, int).reshape(array.shape))

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """The outputs of an open jaxpr."""
        known: dict[Any, Value] = {}
        known.update(zip(jaxpr.constvars, map(Value.constant, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            return known[atom] if not hasattr(atom, "val") else Value.constant(atom.val)

        for equation in jaxpr.eqns:
            out = self._equation(equation, [read(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, out, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Value]) -> list[Value]:
        kind, params = equation.primitive.name, equation.params
        if all(np.all(v.stage < 0) for v in inputs) and not _inner(params):
            return self._fold(equation, inputs)
        if kind == "stop_gradient" or not any(
            jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.outvars
        ):
            return self._fold(equation, inputs)
        if kind in SAME:
            return [Value(np.asarray(v.array, np.float64), v.stage) for v in inputs]
        if kind in MOVES:
            return self._move(equation, inputs)
        if kind in HANDLERS:
            return [HANDLERS[kind](self, equation, inputs)]
        if kind == "cond":
            index, *rest = inputs
            closed = params["branches"][int(index.array)]
            return self.run(closed.jaxpr, closed.consts, rest)
        if kind == "scan":
            return self._scan(params, inputs)
        inner = _inner(params)
        if inner is not None and kind != "while":
            return self.run(*_open(inner), inputs)
        row = TABLE.get(kind)
        if kind == "integer_pow":
            kind = "square" if params["y"] == 2 else kind
            row = TABLE["square"] if params["y"] == 2 else integer_power(params["y"])
        if row is None:
            raise InputError(
                f"explain_function: no local derivative for {kind!r}; known are "
                f"{', '.join(sorted(TABLE))}, integer_pow, select_n, sums, products, maxima, dots, scans "
                "and whatever only moves numbers"
            )
        return [self._elementwise(equation, kind, row, inputs)]

    # --- kinds of equations --------------------------------------------------------------------------

    def _fold(self, equation: Any, inputs: list[Value]) -> list[Value]:
        """What depends on no input, or has no derivative: a constant."""
        return [Value.constant(a) for a in _bind(equation, [v.array for v in inputs])]

    def _move(self, equation: Any, inputs: list[Value]) -> list[Value]:
        arrays = _bind(equation, [v.array for v in inputs])
        real = [jnp.issubdtype(v.array.dtype, jnp.floating) for v in inputs]
        labels = [v.stage if r else v.array for v, r in zip(inputs, real, strict=True)]
        stages = _bind(equation, labels)
        return [Value(a, s) for a, s in zip(arrays, stages, strict=True)]

    def _elementwise(self, equation: Any, kind: str, row: Row, inputs: list[Value]) -> Value:
        (result,) = _bind(equation, [v.array for v in inputs])
        shape = result.shape
        spread = [Value(np.broadcast_to(v.array, shape), np.broadcast_to(v.stage, shape)) for v in inputs]
        made = np.full(shape, -1)
        for at in np.ndindex(*shape):
            made[at] = self._row(kind, row, float(result[at]), [(v, at) for v in spread])
        return Value(result, made)

    def _row(self, kind: str, row: Row, value: float, operands: list[tuple[Value, Any]]) -> int:
        """One stage by a row of the table."""
        numbers = [np.float64(v.array[at]) for v, at in operands]
        stages = [int(v.stage[at]) for v, at in operands]
        names = [self.label(s, x) for s, x in zip(stages, numbers, strict=True)]
        if all(s < 0 for s in stages):
            return -1
        own = name(f"@{len(self.stages)}")
        with np.errstate(all="ignore"):
            slopes = [
                (slope.formula(own, *names), float(slope.number(np.float64(value), *numbers)))
                for slope, s in zip(row.slopes, stages, strict=True)
                if s >= 0
            ]
        varying = tuple(s for s in stages if s >= 0)
        made = self._new(row.write(*names), value, varying, tuple(slopes), kind)
        self.stages[made].tie = kind in ("max", "min") and len(set(numbers)) == 1
        return made

    def _scan(self, params: Any, inputs: list[Value]) -> list[Value]:
        """The loop unrolled: constants, the carry, and one slice of every sequence a turn."""
        consts, carry_count, length = params["num_consts"], params["num_carry"], params["length"]
        fixed, carry, sequences = (
            inputs[:consts],
            inputs[consts : consts + carry_count],
            inputs[consts + carry_count :],
        )
        turns = range(length)[::-1] if params["reverse"] else range(length)
        outputs: dict[int, list[Value]] = {}
        for turn in turns:
            slices = [Value(np.asarray(v.array[turn]), np.asarray(v.stage[turn])) for v in sequences]
            result = self.run(*_open(params["jaxpr"]), [*fixed, *carry, *slices])
            carry, outputs[turn] = result[:carry_count], result[carry_count:]
        rows = [outputs[turn] for turn in range(length)]
        stacked = [
            Value(np.stack([r[i].array for r in rows]), np.stack([r[i].stage for r in rows]))
            for i in range(len(rows[0]) if rows else 0)
        ]
        return [*carry, *stacked]

    # --- stages ---------------------------------------------------------------------------------------

    def label(self, stage: int, value: float) -> Expr:
        return name(f"@{stage}") if stage >= 0 else num(value)

    def _new(self, formula: Any, value: float, operands: Any, slopes: Any, kind: str) -> int:
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
        return self._new(formula, value, tuple(operands), tuple(slopes), kind)


def _inner(params: Any) -> Any:
    return next((params[key] for key in INNER if key in params and hasattr(params[key], "eqns")), None)


def _open(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def _bind(equation: Any, arrays: Sequence[Any]) -> list[np.ndarray]:
    out = equation.primitive.bind(*map(jnp.asarray, arrays), **equation.params)
    out = out if equation.primitive.multiple_results else [out]
    return [np.asarray(a) for a in out]


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


def _sum(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    values, stages = _reduced(inputs[0], equation.params["axes"])
    (result,) = _bind(equation, [inputs[0].array])

    def one(at: Any) -> int:
        terms = [(int(s), float(v), -1, 1.0) for s, v in zip(stages[at], values[at], strict=True)]
        return reader.sum_of(terms, float(result[at]), "sum")

    return Value(result, _each(result.shape, one))


def _product(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    values, stages = _reduced(inputs[0], equation.params["axes"])
    (result,) = _bind(equation, [inputs[0].array])

    def one(at: Any) -> int:
        names = [reader.label(int(s), float(v)) for s, v in zip(stages[at], values[at], strict=True)]
        which = [k for k, s in enumerate(stages[at]) if s >= 0]
        if not which:
            return -1
        others = [[m for m in range(len(names)) if m != k] for k in which]
        slopes = [(mul(*(names[m] for m in o)), float(np.prod(values[at][o]))) for o in others]
        operands = tuple(int(stages[at][k]) for k in which)
        return reader._new(mul(*names), float(result[at]), operands, tuple(slopes), "prod")

    return Value(result, _each(result.shape, one))


def _extreme(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    """Maximum or minimum over axes: 1 for the winner, shared equally in a tie, as JAX does."""
    values, stages = _reduced(inputs[0], equation.params["axes"])
    (result,) = _bind(equation, [inputs[0].array])
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
        made = reader._new(call(kind, *names), float(result[at]), operands, slopes, kind)
        reader.stages[made].tie = bool(wins.sum() > 1)
        return made

    return Value(result, _each(result.shape, one))


def _dot(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    (result,) = _bind(equation, [v.array for v in inputs])

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


def _select(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    """`where`: the case that was chosen, derivative 1; the others do not reach the output."""
    which, *cases = inputs
    (result,) = _bind(equation, [v.array for v in inputs])
    chosen = np.broadcast_to(which.array, result.shape).astype(int)
    stages = np.stack([np.broadcast_to(c.stage, result.shape) for c in cases])
    return Value(result, np.asarray(np.take_along_axis(stages, chosen[None], 0)[0]))


def _clamp(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    """`clamp(low, x, high)`: whichever of the three is the result."""
    (result,) = _bind(equation, [v.array for v in inputs])
    low, x, high = (np.broadcast_to(v.array, result.shape) for v in inputs)
    stage_low, stage_x, stage_high = (np.broadcast_to(v.stage, result.shape) for v in inputs)
    return Value(result, np.where(x < low, stage_low, np.where(x > high, stage_high, stage_x)))


def _cumulative(reader: Reader, equation: Any, inputs: list[Value]) -> Value:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    (result,) = _bind(equation, [inputs[0].array])
    value, stage = np.moveaxis(inputs[0].array, axis, -1), np.moveaxis(inputs[0].stage, axis, -1)
    out = np.moveaxis(result, axis, -1)

    def one(at: Any) -> int:
        *rest, k = at
        part = slice(k, None) if reverse else slice(0, k + 1)
        values, stages = value[tuple(rest)][part], stage[tuple(rest)][part]
        terms = [(int(s), float(v), -1, 1.0) for s, v in zip(stages, values, strict=True)]
        return reader.sum_of(terms, float(out[at]), "sum")

    return Value(result, np.moveaxis(_each(out.shape, one), -1, axis))


HANDLERS: dict[str, Callable[[Reader, Any, list[Value]], Value]] = {
    "reduce_sum": _sum,
    "reduce_prod": _product,
    "reduce_max": _extreme,
    "reduce_min": _extreme,
    "dot_general": _dot,
    "select_n": _select,
    "clamp": _clamp,
    "cumsum": _cumulative,
}
