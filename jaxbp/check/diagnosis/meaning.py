"""What a factor is: a length, a root of one, a number of the function; and indices in words."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.operations import Constant, is_float
from jaxbp.check.program import all_ops

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case


def meaning_of(case: Case, k: float) -> str:
    """What a factor is, in terms of the sizes and constants in the function."""
    near = max(case.tolerance[i] for i in case.wrong) * 20
    sizes, constants = _sizes(case), _constants(case)
    ranked = _plain(case, sizes)
    for n, words in sizes.items():
        ranked += [
            (1 / n, f"1/{n}, {words}: a mean in the place of a sum, or one divided twice"),
            (float(n), f"{n}, {words}: a sum in the place of a mean, or a mean's 1/{n} left out"),
        ]
    for n, words in sizes.items():
        ranked.append((math.sqrt(n), f"√{n}, with {n} {words}"))
        ranked.append((1 / math.sqrt(n), f"1/√{n}, with {n} {words}"))
    ranked += [(1 - v, f"1 - {v:g}") for v in constants]
    for v in constants:
        ranked += [
            (abs(v), f"the constant {v:g} of the function"),
            (1 / abs(v), f"1 over the constant {v:g}"),
        ]
    ranked += [(m / (m - 1), f"{m}/{m - 1}, with {m} {w}") for m, w in sizes.items() if m > 1]
    ranked += [((m - 1) / m, f"{m - 1}/{m}, with {m} {w}") for m, w in sizes.items() if m > 1]
    fits = list(dict.fromkeys(words for value, words in ranked if value and abs(k / value - 1) <= near))
    return " (or ".join(fits[:2]) + ")" * (len(fits[:2]) - 1)


def _plain(case: Case, sizes: dict[int, str]) -> list[tuple[float, str]]:
    """The small numbers that are not a length here, and what they come from."""
    names = {op.primitive.name for op in all_ops(case.oracle.program.scope)}
    squares = bool(names & {"square", "integer_pow"}) or any(
        op.primitive.name == "mul" and op.inputs[0] is op.inputs[1]
        for op in all_ops(case.oracle.program.scope)
    )
    two = ("2, as from a square", "½, as where the 2 of a square is left out") if squares else ("2", "½")
    plain = {2.0: two[0], 0.5: two[1], 4.0: "4", 0.25: "¼", 3.0: "3", 1 / 3: "⅓"}
    return [(v, w) for v, w in plain.items() if round(v) not in sizes and round(1 / v) not in sizes]


def _sizes(case: Case) -> dict[int, str]:
    """Lengths of axes in the arguments, outputs and in between, with what they are."""
    found: dict[int, str] = {}
    shapes = [(np.shape(d), "the output") for d in case.points[0][1]]
    shapes += [(np.shape(leaf), p) for leaf, p in zip(case.points[0][0], case.paths, strict=True)]
    leading = [shape[0] for shape, _ in shapes if len(shape) > 1]
    for shape, name in shapes:
        for axis, n in enumerate(shape):
            if n > 1:
                batch = axis == 0 and len(shape) > 1 and (leading.count(n) > 1 or len(shapes) == 2)
                what = "the batch size, axis 0" if batch else f"the length of axis {axis}"
                found.setdefault(n, f"{what} of {name}")
    for op in all_ops(case.oracle.program.scope):
        for aval in op.out_avals:
            for n in getattr(aval, "shape", ()):
                if n > 1:
                    found.setdefault(n, f"the length of an axis at {op.place}")
        if op.kind == "scan" and op.loop.length > 1:
            found.setdefault(op.loop.length, f"the number of turns of the loop at {op.place}")
    for shape, name in shapes:
        if len(shape) > 1 and math.prod(shape) > 1:
            found.setdefault(math.prod(shape), f"the number of entries of {name}")
        for a, b in itertools.pairwise(shape):
            if a * b > 1:
                found.setdefault(a * b, f"the product of two axes of {name}")
    return found


def _constants(case: Case) -> list[float]:
    """The numbers written in the function."""
    found = {}
    for op in all_ops(case.oracle.program.scope):
        for v in op.inputs:
            if isinstance(v, Constant) and np.size(v.value) == 1 and is_float(np.asarray(v.value)):
                number = float(np.asarray(v.value).reshape(()))
                if math.isfinite(number) and number not in (0.0, 1.0, -1.0):
                    found[number] = None
    return list(found)


def indices(rows: Any) -> str:
    """`index 3`, `indices 0–4`, `indices 1, 3, 5`."""
    rows = [int(r) for r in rows]
    if len(rows) == 1:
        return f"index {rows[0]}"
    if rows == list(range(rows[0], rows[-1] + 1)):
        return f"indices {rows[0]}–{rows[-1]}"
    return "indices " + ", ".join(map(str, rows[:8])) + (" …" if len(rows) > 8 else "")
