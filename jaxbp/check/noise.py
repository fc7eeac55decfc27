"""How exact a gradient can be expected to be: measured, not guessed.

Two measures, both leaf by leaf. The *floor*: how far the working dtype's own autodiff is from float64.
The *spread*: how far float64 results move when every intermediate value is changed in its last digits,
at random. A difference that is of the size of the spread is rounding, however large it looks beside an
ill-conditioned result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.operations import Editor, Op, is_float
from jaxbp.check.oracle import float64, quick_jit
from jaxbp.check.program import Program, read

RUNS = 4


def scale_of(reference: Any) -> float:
    """The size of the largest entry, which sets the scale of an array's errors."""
    array = np.asarray(reference)
    return max(float(array.max()), -float(array.min())) if array.size else 0.0


def working_gradient(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Autodiff in the dtype of the arguments, with custom rules left out: `(leaves, dy) -> list`."""

    def gradient(leaves: Sequence[Any], dy: Sequence[Any]) -> list[Any]:
        program = read(plain, leaves)

        def outputs(values: Sequence[Any]) -> list[Any]:
            return [y for y in program.run(values, wide=False) if is_float(y)]

        return list(jax.vjp(outputs, list(leaves))[1](list(dy))[0])

    return gradient


class Jitter(Editor):
    """Changes the last digits of every intermediate value, as if at random (by a fast sine)."""

    def __init__(self, phase: Any, size: float):
        self.phase, self.size, self.count = phase, size, 0

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        return [self._shake(r) if is_float(r) else r for r in results]

    def _shake(self, value: Any) -> Any:
        self.count += 1
        there = jnp.isfinite(value)  # a running maximum begins at -inf
        u = jnp.sin(jnp.where(there, value, 0.0) * 1e6 + (self.phase + 17.0 * self.count))
        return jnp.where(there, value * (1 + self.size * u), value)


def spread(
    fn: Callable[[list[Any], list[Any]], list[Any]], points: Sequence[tuple[list[Any], list[Any]]]
) -> list[list[float]]:
    """For every point and result of `fn(leaves, dy)`: the largest movement under `Jitter`."""
    with float64():
        leaves, dy = points[0]
        program: Program = read(
            lambda *v: fn(list(v[: len(leaves)]), list(v[len(leaves) :])), [*leaves, *dy]
        )

        @quick_jit
        def shaken(values: list[Any], phase: Any) -> list[Any]:
            return program.run(values, Jitter(phase, 2.0**-50))

        found = []
        for leaves, dy in points:
            runs = [shaken([*leaves, *dy], float(i)) for i in range(RUNS)]
            found.append([_range([np.asarray(run[i]) for run in runs]) for i in range(len(runs[0]))])
    return found


def _range(values: list[np.ndarray]) -> float:
    stacked = np.stack(values)
    if not stacked.size:
        return 0.0
    return float(np.max(np.max(stacked, axis=0) - np.min(stacked, axis=0)))


def epsilon(dtype: Any) -> float:
    """The spacing of numbers at 1 in `dtype`."""
    return float(jnp.finfo(dtype).eps)
