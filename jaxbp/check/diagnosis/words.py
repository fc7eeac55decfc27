"""Edits in words: what is missing, at which line, and what to call it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis.meaning import indices, meaning_of
from jaxbp.check.diagnosis.roles import at, role, source
from jaxbp.check.edits.edit import Edge
from jaxbp.check.edits.sites import Sites
from jaxbp.check.edits.together import Together
from jaxbp.check.guesses.chains import SPREAD
from jaxbp.check.operations import Constant, Op
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

HERE = "…"  # where an edge is put into a sentence


def origin_of(case: Case, sites: Sites, op: Op, k: int) -> str:
    """What the operand is: an argument, or the result of an earlier operation (moves left out)."""
    v: Any = op.inputs[k]
    if isinstance(v, Constant):
        return f"the number {float(np.ravel(v.value)[0]):g}" if np.size(v.value) == 1 else "a fixed array"
    while isinstance(v, int) and v in sites.producer:
        maker = sites.producer[v]
        if maker.primitive.name not in (
            "broadcast_in_dim",
            "reshape",
            "convert_element_type",
            "squeeze",
            "copy",
        ):
            part = maker.place.expression
            return f"`{maker.name}` at {maker.place}: `{part}`" if part else f"`{maker.name}` {at(maker)}"
        v = maker.inputs[0]
    inputs = case.oracle.program.scope.inputs
    if v in inputs:
        return f"the argument {case.paths[inputs.index(v)]}"
    holder = sites.holder[id(op)]
    return f"what the loop at {holder.place} carries or holds" if holder is not None else "an argument"


def edge(case: Case, sites: Sites, choice: Edge | Together, amount: float, names: str) -> Finding:
    """A weighted edge: missing (1), twice (-1), of the wrong sign (2), or scaled."""
    op, k = choice.op, choice.operand
    places = f", in {len(choice.parts)} places of that line" if isinstance(choice, Together) else ""
    through = (
        f"the value of `{op.name}` {at(op)}" if choice.variable else f"{role(op, k)} {at(op)}{places}"
    )
    origin = "" if choice.variable else f" (that operand comes from {origin_of(case, sites, op, k)})"
    weight = 1 - amount
    near = 1e-3
    evidence = {
        "source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name,
        "operand": k, "weight": weight,
    }  # fmt: skip
    known_number = left_out(sites, op, k, weight)
    if _squared(sites, op, weight):
        cause = "scale"
        what = f"{HERE} is one of two equal factors, and only one is differentiated: ½, a 2 is left out"
        evidence["factor"] = 0.5
    elif known_number:
        cause = "scale"
        size = f"{weight:.6g} times its size: {known_number}"
        what = f"the contribution that comes back through {HERE} is {size}"
        evidence["factor"] = weight
    elif abs(weight) < near and _one_of_the_cases(sites, op, k):
        cause = "wrong-activation" if op.within else "missing-rows"
        what = f"the contribution that comes back through {HERE}, of the entries in that case, is missing"
    elif abs(weight) < near and _own_entry(sites, op, k):
        cause = "missing-rows"
        what = f"{HERE} is not taken off on the way back: each entry is in its own sum, an off-by-one"
    elif abs(weight) < near:
        cause, what = "missing-path", "the contribution that comes back through … is missing"
    elif abs(weight - 2) < near:
        cause, what = "extra-path", "the contribution that comes back through … is counted twice"
    elif abs(weight + 1) < near:
        cause, what = "sign", "the contribution that comes back through … has the wrong sign"
    else:
        meaning = meaning_of(case, abs(weight))
        known = f" ({meaning})" if meaning else ""
        cause = "scale"
        what = (
            f"the contribution that comes back through {HERE} is {weight:.6g} times what it should "
            f"be{known}"
        )
        evidence["factor"] = weight
    return Finding(names, cause, f"{names}: {what.replace(HERE, through)}{origin}", evidence)


def _own_entry(sites: Sites, op: Op, k: int) -> bool:
    """Whether a running sum is made one that ends before each entry: `cumsum(x) - x`."""
    run = sites.producer.get(op.inputs[0]) if op.primitive.name == "sub" and k == 1 else None
    return run is not None and run.primitive.name == "cumsum" and run.inputs[0] == op.inputs[1]


def _one_of_the_cases(sites: Sites, op: Op, k: int) -> bool:
    """Whether the operand is one case of a selection whose other cases carry a derivative too."""
    cases = [n for n in range(1, len(op.inputs)) if sites.is_live(op, n)]
    return op.primitive.name == "select_n" and k in cases and len(cases) > 1


def _squared(sites: Sites, op: Op, weight: float) -> bool:
    """Whether one of two equal factors is cut: `x·x`, or `(c·x)·x`, with the derivative `x`."""
    if op.primitive.name != "mul" or abs(weight) >= 1e-3:
        return False
    first, second = (_without_numbers(sites, v) for v in op.inputs)
    return isinstance(first, int) and first == second


def _without_numbers(sites: Sites, v: Any) -> Any:
    """The one live factor of a product with numbers or fixed arrays."""
    op = sites.producer.get(v) if isinstance(v, int) else None
    if op is None or op.primitive.name not in ("mul", "div", "neg"):
        return v
    live = [k for k in range(len(op.inputs)) if sites.is_live(op, k)]
    if len(live) != 1 or (op.primitive.name == "div" and live == [1]):
        return v
    return _without_numbers(sites, op.inputs[live[0]])


def left_out(sites: Sites, op: Op, k: int, weight: float) -> str:
    """The number next to an edge that its weight takes back, or puts in again; in words."""
    maker = sites.producer.get(op.inputs[k]) if isinstance(op.inputs[k], int) else None
    for one in (op, maker):
        if one is None or one.primitive.name not in ("mul", "div") or abs(weight) < 1e-3:
            continue
        for v in one.inputs:
            if isinstance(v, Constant) and np.size(v.value) == 1:
                c = float(np.asarray(v.value, np.float64).reshape(()))
                factor = c if one.primitive.name == "mul" else (1 / c if c else 0.0)
                if factor and abs(abs(factor) - 1) > 1e-3 and abs(weight * factor - 1) < 1e-3:
                    return f"the number {c:g} {at(one)} is left out"
                if factor and abs(abs(factor) - 1) > 1e-3 and abs(weight / factor - 1) < 1e-3:
                    return f"the number {c:g} {at(one)} is applied twice"
    other = op.inputs[1 - k] if op.primitive.name == "mul" and len(op.inputs) == 2 else None
    for one, c, factor in _numbers_in(sites, other):
        if abs(abs(factor) - 1) > 1e-3 and abs(weight * factor - 1) < 1e-3:
            return f"the number {c:g} {at(one)} is left out of its other factor"
    return ""


def _numbers_in(sites: Sites, v: Any, steps: int = 4) -> Iterator[tuple[Op, float, float]]:
    """`(operation, number, what it multiplies by)` for the numbers in a product or quotient."""
    op = sites.producer.get(v) if isinstance(v, int) else None
    if op is None or steps == 0 or op.primitive.name not in ("mul", "div", *SPREAD):
        return
    for k, u in enumerate(op.inputs):
        if isinstance(u, Constant) and np.size(u.value) == 1 and op.primitive.name in ("mul", "div"):
            c = float(np.asarray(u.value, np.float64).reshape(()))
            if c:
                yield op, c, 1 / c if op.primitive.name == "div" and k == 1 else c
        elif op.primitive.name != "div" or k == 0:
            yield from _numbers_in(sites, u, steps - 1)


def several(case: Case, sites: Sites, chosen: list[tuple[Edge, float]], names: str) -> Finding:
    """Several weighted edges at once."""
    weights = [1 - amount for _, amount in chosen]
    parts = []
    for (choice, _), weight in zip(chosen, weights, strict=True):
        what = "is missing" if abs(weight) < 1e-3 else f"counts {weight:.4g} times"
        parts.append(f"the contribution through {role(choice.op, choice.operand)} {at(choice.op)} {what}")
    evidence: dict[str, Any] = {
        "source": source(chosen[0][0].op), "sources": [source(c.op) for c, _ in chosen],
        "weights": weights,
    }  # fmt: skip
    same = all(abs(w - weights[0]) < 1e-3 * max(1.0, abs(weights[0])) for w in weights)
    named = {0: "missing-path", 2: "extra-path", -1: "sign"}
    nearest = round(weights[0])
    if same and abs(weights[0] - nearest) < 1e-3 and nearest in named:
        cause = named[nearest]
    elif same:
        cause = "scale"
        evidence["factor"] = weights[0]
        meaning = meaning_of(case, abs(weights[0]))
        parts[-1] += f" ({meaning})" if meaning else ""
    else:
        cause = _of_unlike(weights)
    return Finding(names, cause, f"{names}: " + ", and ".join(parts), evidence)


def _of_unlike(weights: list[float]) -> str:
    """The cause of two weights that differ: the graver of the two faults."""
    if any(abs(w) < 1e-3 for w in weights):
        return "missing-path"
    if any(abs(w + 1) < 1e-3 for w in weights):
        return "sign"
    return "extra-path" if all(abs(w - round(w)) < 1e-3 and w > 0 for w in weights) else "scale"


def number(sites: Sites, chosen: list[Any], value: float, names: str) -> Finding:
    """A number of the function that is another in the gradient."""
    op, old = chosen[0].op, chosen[0].free
    places = "; ".join(dict.fromkeys(at(change.op) for change in chosen))
    detail = (
        f"{names}: this is the gradient with {value:.6g} in the place of the number {old:.6g} {places}"
    )
    if chosen[0].words:
        detail = f"{names}: this is the gradient with {value:.6g} {chosen[0].words} {places}"
    evidence = {
        "source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name,
        "number": old, "instead": value,
    }  # fmt: skip
    return Finding(names, chosen[0].cause, detail, evidence)


def rows(sites: Sites, choice: Edge, weights: np.ndarray, seen: np.ndarray, names: str) -> Finding:
    """Some indices of an axis, or some turns of a loop, do not count as they should."""
    op, gone = choice.op, np.flatnonzero(np.abs(weights) < 1e-4)
    there = np.flatnonzero(seen & (np.abs(weights) >= 1e-4))
    wrong = np.flatnonzero(np.abs(weights - 1) > 1e-3)
    where = f"the result of `{op.name}`" if choice.variable else role(op, choice.operand)
    what = "turns of the loop" if choice.steps else f"axis {choice.axis} of {where}"
    evidence = {"source": source(op), "weights": np.round(weights, 5).tolist()}
    if len(gone) == len(wrong) and len(there) == 1 and len(weights) > 2:
        detail = (
            f"{names}: only {indices(there)} of {what} {at(op)} contributes: the sum over it is missing"
        )
        return Finding(names, "missing-sum", detail, evidence)
    if len(gone) == len(wrong):
        detail = f"{names}: the contribution of {indices(gone)} of {what} {at(op)} is missing"
    else:
        values = ", ".join(f"{w:.4g}" for w in weights[:8])
        detail = (
            f"{names}: the contributions along {what} {at(op)} are weighted {values} instead of 1 each"
        )
    uneven = not len(gone) and 2 * len(wrong) > len(weights)  # all are there, in other shares
    return Finding(names, "scale" if uneven else "missing-rows", detail, evidence)


def turns(case: Case, sites: Sites, loop: Together, weights: list[float], names: str) -> Finding:
    """Some of the turns of a loop that Python unrolled do not count as they should."""
    op, k, count = loop.op, loop.operand, len(weights)
    wrong = np.flatnonzero(np.abs(np.asarray(weights) - 1) > 1e-3)
    gone = np.flatnonzero(np.abs(weights) < 1e-3)
    through = f"{role(op, k)} {at(op)} (that operand comes from {origin_of(case, sites, op, k)})"
    evidence = {
        "source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name,
        "weights": [round(float(w), 5) for w in weights],
    }  # fmt: skip
    if len(gone) == len(wrong) == count - 1:
        left = next(n for n in range(count) if n not in gone)
        detail = f"only turn {left} of the {count} of that line contributes: the sum over them is missing"
        return Finding(names, "missing-sum", f"{names}: through {through}, {detail}", evidence)
    if len(gone) == len(wrong) > 0:
        detail = f"the contribution of {indices(gone)} of the {count} turns of that line is missing"
    else:
        shown = ", ".join(f"{w:.4g}" for w in weights[:8])
        detail = (
            f"the contributions of the {count} turns of that line are weighted {shown} instead of 1 each"
        )
    cause = "missing-rows" if len(gone) else "scale"
    if _one_call_in_each(gone, wrong, count):
        cause, detail = "missing-path", detail.replace("turns", "calls") + ": the same one in every turn"
    return Finding(names, cause, f"{names}: through {through}, {detail}", evidence)


def _one_call_in_each(gone: np.ndarray, wrong: np.ndarray, count: int) -> bool:
    """Whether what is missing is the same call of a helper in each of several turns."""
    period = count // len(gone) if len(gone) > 1 and count % len(gone) == 0 else 0
    return len(gone) == len(wrong) and period > 1 and bool(np.all(np.diff(gone) == period))
