"""The first operation of a program that makes a value which is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.core import Tracer

from jaxbp.check.operations import Editor, Op, is_float
from jaxbp.check.program import read

if TYPE_CHECKING:
    from jaxbp.check.verify import Check


class _Watch(Editor):
    def __init__(self, bad: Callable[[Any], bool]) -> None:
        self.bad = bad
        self.found: tuple[Op, list[Any]] | None = None

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        values = [*operands, *results]
        if self.found is None and not any(isinstance(v, Tracer) for v in values):
            fresh = any(self.bad(r) for r in results) and not any(self.bad(v) for v in operands)
            if fresh:
                self.found = op, operands
        return results


def _bad(x: Any) -> bool:
    """NaN anywhere, or +inf (−inf is how masks are written)."""
    return bool(
        is_float(x)
        and np.any(np.isnan(np.asarray(x, np.float64)) | np.isposinf(np.asarray(x, np.float64)))
    )


def _infinite(x: Any) -> bool:
    """NaN or infinity of either sign."""
    return bool(is_float(x) and not np.all(np.isfinite(np.asarray(x, np.float64))))


def first_operation(fn: Any, values: list[Any]) -> str:
    """In words: the first operation of `fn(*values)` with a result that is not finite, or nothing."""
    program = read(fn, values)
    watch = _Watch(_bad)
    program.run(values, watch, wide=False)
    if watch.found is None:
        watch = _Watch(_infinite)
        program.run(values, watch, wide=False)
    if watch.found is None:
        return ""
    op, operands = watch.found
    sizes = [_range(v) for v in operands if is_float(v)]
    text = f": `{op.place.text}`" if op.place.text else ""
    return f"the first is made by `{op.name}` at {op.place}{text} from values in {' and '.join(sizes)}"


def _range(x: Any) -> str:
    x = np.asarray(x, np.float64)
    return f"[{np.min(x):.3g}, {np.max(x):.3g}]" if x.size else "[]"


def first(check: Check) -> str:
    """The first operation of the rule under test that makes a value which is not finite."""
    point = check.points[0]
    for q in [0, *range(1, len(check.points))]:
        if q == 0 or not all(np.all(np.isfinite(g)) for g in check.got[q]):
            point = check.points[q]
            count = len(check.target.leaves)
            values = [*check.leaves(point), *check.dy(point)]
            try:
                words = first_operation(lambda *v, n=count: check.rule.flat(v[:n], v[n:]), values)
            except Exception:
                return ""
            if words:
                return words
    return ""
