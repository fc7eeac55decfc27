"""Arguments that contain exact zeros: where a rule that divides has nothing to divide by.

The derivative of x·y·z by x is y·z, and a rule that writes it as xyz/x is right everywhere except where
x = 0, which random arguments never are. So a gradient that is right at all usual points is also looked
at with some entries of the arguments 0, and, where a product over an axis is taken, with some 0 or 1
(the 1 - α of a compositing sum is 0 at α = 1). Points at which the function has a kink or is not finite,
or where autodiff itself disagrees with differences, say nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxbp.check import kinks
from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.measure import arrays
from jaxbp.check.operations import Op
from jaxbp.check.oracle import float64
from jaxbp.check.program import Program, all_ops
from jaxbp.check.report import Finding
from jaxbp.check.sample import Point, is_bound

PRODUCTS = ("reduce_prod", "cumprod")  # every other factor is the slope, also where one is 0
MULTIPLY = (
    "Multiply the other factors; the whole product divided by the one has nothing to divide where that "
    "is 0, and a guard against it leaves 0 where the slope is not."
)
SHARE = 0.3  # of the entries
MOST = 4  # leaves that are looked at one by one


@runtime_checkable
class Checked(Protocol):
    """What is asked of a check: its points with truth and claim at each, and how to look at another."""

    target: Any
    rule: Any
    oracle: Any
    report: Any
    verdicts: Any
    seed: int
    points: list[Point]
    wide: list[Any]
    truth: list[Any]
    got: list[Any]

    def wide_of(self, point: Point) -> Any: ...
    def claimed(self, point: Point) -> Any: ...


def wrong_at_zeros(check: Checked, doubted: Callable[[int], bool]) -> list[int]:
    """The leaves that are wrong at a point with zeros; that point is added to the check's.

    `doubted(q)` says that autodiff disagrees with differences at point `q`.
    """
    program = check.oracle.program
    if check.oracle.method != "reverse" or _kinks_inside(program):
        return []
    for point in _points(check):
        with float64():
            wide = check.wide_of(point)
            truth = arrays(check.oracle.compiled(*wide))
            if not all(np.all(np.isfinite(t)) for t in truth) or kinks.ties(program, wide[0]):
                continue
        check.points.append(point)
        check.wide.append(wide)
        check.truth.append(truth)
        check.got.append(check.claimed(point))
        check.verdicts.forget_spreads()
        q = len(check.points) - 1
        wrong = [i for i in range(len(truth)) if check.verdicts.is_wrong_at(i, q)]
        wrong = [i for i in wrong if not (check.target.optional[i] and check.rule.absent[i])]
        if wrong and not doubted(q):
            return wrong
        for held in (check.points, check.wide, check.truth, check.got):
            held.pop()
        check.verdicts.forget_spreads()
        check.report.tried.append(point.label.removeprefix("with "))
    return []


def finding(check: Checked, i: int) -> Finding:
    """What is said of leaf `i`, which is right at all points but the last, and finite there."""
    path, label = check.target.paths[i], check.points[-1].label
    detail = f"{path} is right at all other arguments, and wrong {label}"
    ops = [op for op in all_ops(check.oracle.program.scope) if op.primitive.name in PRODUCTS]
    if not ops:
        advice = "Look for a division by that argument, or a guard against it, in the backward pass."
        return Finding(path, "unknown", detail, {"advice": advice})
    detail += (
        f": in the product `{ops[0].name}` {at(ops[0])} the slope of a factor is the product of the "
        "others, also where the factor is 0"
    )
    return Finding(path, "missing-path", detail, {"advice": MULTIPLY, "source": source(ops[0])})


def advised(check: Checked, found: Finding) -> Finding:
    """A `nan` at such a point with the advice that fits: a guard alone would leave 0 in its place."""
    products = any(op.primitive.name in PRODUCTS for op in all_ops(check.oracle.program.scope))
    if found.cause != "nan" or not products:
        return found
    return Finding(found.path, found.cause, found.detail, {**found.evidence, "advice": MULTIPLY})


def _kinks_inside(program: Program) -> bool:
    """Whether a loop or a branch has kinks, where ties are not counted."""
    inside = {id(op) for op in program.scope.ops}
    names = (name for op in all_ops(program.scope) if id(op) not in inside for name in _names(op))
    return any(name in kinks.KINKED for name in names)


def _names(op: Op) -> tuple[str, str]:
    return op.name, op.primitive.name


def _points(check: Checked) -> list[Point]:
    """One with zeros in all arguments that have both signs; then what is multiplied, one by one."""
    rng = np.random.default_rng([check.seed, 4])
    given = check.points[0]
    signed = [i for i, v in enumerate(given.leaves) if _free(v) and np.any(v > 0) and np.any(v < 0)]
    made = [_with(given, signed, 0.0, "with some entries exactly 0", rng)] if signed else []
    for i in _multiplied(check.oracle.program):
        if not _free(given.leaves[i]) or len(made) > 2 * MOST:
            continue
        for value in (0.0, 1.0):
            label = f"with some entries of {check.target.paths[i]} exactly {value:g}"
            made.append(_with(given, [i], value, label, rng))
    return made


def _free(leaf: np.ndarray) -> bool:
    """Whether entries may be set: not of a mask, nor where what was given is not finite itself."""
    wide = np.asarray(leaf, np.float64)
    return wide.size > 1 and bool(np.all(np.isfinite(wide))) and not is_bound(wide)


def _with(given: Point, which: list[int], value: float, label: str, rng: np.random.Generator) -> Point:
    leaves = list(given.leaves)
    for i in which:
        hit = rng.random(leaves[i].shape) < SHARE
        hit.flat[rng.integers(hit.size)] = True
        leaves[i] = np.where(hit, value, leaves[i]).astype(leaves[i].dtype)
    return Point(label, leaves, given.dy)


def _multiplied(program: Program) -> list[int]:
    """The arguments that go into a product over an axis."""
    found = []
    for i, start in enumerate(program.scope.inputs):
        reached = {start}
        for op in program.scope.ops:
            if not reached.isdisjoint(v for v in op.inputs if isinstance(v, int)):
                reached.update(op.outputs)
                bodies = [inner for body in op.bodies for inner in all_ops(body)]
                if any(o.primitive.name in PRODUCTS for o in (op, *bodies)):
                    found.append(i)
                    break
    return found
