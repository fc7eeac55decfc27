"""The values of a program at one point, by number: what a hand-written derivative could have used.

Values inside a scan are stacked, turn by turn, in front of their own axes. Those inside a `while` or a
branch are left out: how often they come about is not known beforehand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.operations import Editor, Op, Scope, is_float
from jaxbp.check.oracle import float64, quick_jit
from jaxbp.check.program import Program

LARGEST = 4_000_000  # entries kept


class Recorder(Editor):
    """Keeps every value that it sees, except complex numbers and random keys."""

    def __init__(self) -> None:
        self.frames: list[dict[int, Any]] = [{}]

    def begin(self) -> None:
        self.frames.append({})

    def end(self) -> dict[int, Any]:
        return self.frames.pop()

    def keep(self, left: dict[int, Any]) -> None:
        self.frames[-1].update(left)

    def enter(self, scope: Scope, values: list[Any]) -> None:
        self._add(scope.inputs, values)

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        self._add(op.outputs, results)
        return results

    def _add(self, numbers: list[int], values: list[Any]) -> None:
        pairs = zip(numbers, values, strict=True)
        self.frames[-1].update({n: jnp.asarray(v) for n, v in pairs if _plain(v)})


def _plain(x: Any) -> bool:
    dtype = getattr(x, "dtype", np.dtype(float))
    return is_float(x) or jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def record(program: Program, points: list[list[Any]]) -> list[dict[int, Any]]:
    """The values at every point, in float64."""

    def values(leaves: list[Any]) -> dict[int, Any]:
        recorder = Recorder()
        program.run(leaves, recorder)
        return recorder.frames[0]

    with float64():
        sizes = jax.eval_shape(values, points[0])
        if sum(v.size for v in sizes.values()) > LARGEST:
            return [{} for _ in points]
        compiled = quick_jit(values)
        return [{k: np.asarray(v) for k, v in compiled(leaves).items()} for leaves in points]
