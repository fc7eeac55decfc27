"""Reading a function's jaxpr into scalar stages, each with its local derivatives.

Arrays are taken apart: every real number is a stage of its own. Operations that only move numbers
(reshape, slice, gather, …) are run once on the stages' own indices, and make no stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp import jaxprs
from jaxbp.explain.handlers import HANDLERS
from jaxbp.explain.stages import Stages, Value, bind
from jaxbp.explain.symbols import name
from jaxbp.explain.table import TABLE, Row, integer_power
from jaxbp.layer import InputError

MOVES = {
    "broadcast_in_dim", "concatenate", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather",
    "pad", "rev", "reshape", "scatter", "slice", "split", "squeeze", "stack", "tile", "transpose",
    "unstack",
}  # fmt: skip
SAME = {
    "convert_element_type",
    "copy",
    "copy_p",
    "device_put",
    "reduce_precision",
    "optimization_barrier",
}


class Reader(Stages):
    """Walks a jaxpr; `stages` grows in order of evaluation."""

    def input(self, array: np.ndarray) -> Value:
        made = [self.new(None, float(v), (), (), "input") for v in array.reshape(-1)]
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
        if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in equation.outvars):
            raise InputError(f"explain_function: {kind!r} makes complex numbers; expected real ones only")
        inner = jaxprs.called(equation)
        if inner is None and all(np.all(v.stage < 0) for v in inputs):
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
            return self.run(*jaxprs.opened(params["branches"][int(index.array)]), rest)
        if kind == "scan":
            return self._scan(jaxprs.loop_of(equation), inputs, equation.outvars)
        if inner is not None:
            return self.run(*jaxprs.opened(inner), inputs)
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
        return [Value.constant(a) for a in bind(equation, [v.array for v in inputs])]

    def _move(self, equation: Any, inputs: list[Value]) -> list[Value]:
        arrays = bind(equation, [v.array for v in inputs])
        real = [jnp.issubdtype(v.array.dtype, jnp.floating) for v in inputs]
        labels = [v.stage if r else v.array for v, r in zip(inputs, real, strict=True)]
        stages = bind(equation, labels)
        return [Value(a, s) for a, s in zip(arrays, stages, strict=True)]

    def _elementwise(self, equation: Any, kind: str, row: Row, inputs: list[Value]) -> Value:
        (result,) = bind(equation, [v.array for v in inputs])
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
        made = self.new(row.write(*names), value, varying, tuple(slopes), kind)
        self.stages[made].tie = kind in ("max", "min") and len(set(numbers)) == 1
        return made

    def _scan(self, loop: jaxprs.Loop, inputs: list[Value], made: Sequence[Any]) -> list[Value]:
        """The loop unrolled: constants, the carry, and one slice of every sequence a turn."""
        fixed, carry, sequences = loop.divide(inputs)
        outputs: dict[int, list[Value]] = {}
        for turn in loop.turns():
            slices = [Value(np.asarray(v.array[turn]), np.asarray(v.stage[turn])) for v in sequences]
            result = self.run(*jaxprs.opened(loop.body), [*fixed, *carry, *slices])
            carry, outputs[turn] = result[: loop.carry], result[loop.carry :]
        if not outputs:
            return [*carry, *(Value.constant(np.zeros(v.aval.shape)) for v in made[loop.carry :])]
        rows = [outputs[turn] for turn in range(loop.length)]
        stacked = [
            Value(np.stack([r[i].array for r in rows]), np.stack([r[i].stage for r in rows]))
            for i in range(len(rows[0]))
        ]
        return [*carry, *stacked]
