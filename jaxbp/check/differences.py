"""The oracle itself, against finite differences along a random direction: nobody is believed unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check import kinks
from jaxbp.check.oracle import directional, float64, quick_jit, to_float64
from jaxbp.check.program import all_ops
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.verify import Check


ADVICE = "Find the derivative rule inside the function that is wrong, or name the truth with reference=."


def cross_check(check: Check) -> None:
    """Note, or report as a `forward` fault, where autodiff of the plain function is not its slope."""
    if check.oracle.method == "differences":
        check.report.notes.append("autodiff does not reach this function; the truth is from differences")
        return
    rng = np.random.default_rng([check.seed, 2])
    outputs = quick_jit(check.oracle.outputs)
    slopes = _slopes(outputs, check.wide[0], check.truth[0], rng)
    if slopes is None:
        return
    beside = kinks.nudge(check.points[0], check.seed)
    with float64():
        wide = to_float64(check.leaves(beside)), to_float64(check.dy(beside))
        truth = [np.asarray(g) for g in check.oracle.compiled(*wide)]
    if _slopes(outputs, wide, truth, rng) is None:
        note = "the function has a kink at these arguments: autodiff takes one side, differences both"
        check.report.notes.append(note)
        return
    _disagree(check, *slopes)


def doubted(check: Check, q: int) -> bool:
    """Whether autodiff of the plain function is not its slope at a point."""
    if check.oracle.method == "differences":
        return False
    rng = np.random.default_rng([check.seed, 3])
    return _slopes(quick_jit(check.oracle.outputs), check.wide[q], check.truth[q], rng) is not None


def _slopes(outputs: Any, point: Any, truth: list[Any], rng: Any) -> tuple[float, float] | None:
    """The slope by autodiff and by differences along a random direction, where they are not the same."""
    with float64(), np.errstate(all="ignore"):
        leaves, dy = (list(map(np.asarray, part)) for part in point)
        v = [_direction(np.asarray(leaf), rng) for leaf in leaves]
        slope, doubt = directional(outputs, leaves, dy, v)
        steady = [directional(outputs, leaves, dy, v, step)[0] for step in (4e-4, 1e-4)]
        by_autodiff = sum(float(np.vdot(t, a)) for t, a in zip(truth, v, strict=True))
        size = sum(float(np.sum(np.abs(t * a))) for t, a in zip(truth, v, strict=True)) + 1e-300
    differs = min(abs(float(s) - by_autodiff) for s in (slope, *steady))
    if differs > max(1e-4 * size, 10 * float(doubt)):
        return by_autodiff, float(slope)
    return None


def _names(check: Check) -> set[str]:
    """Of all operations, with those inside JAX's own derivative rules."""
    ops = all_ops(check.oracle.program.scope)
    inside = [inner for op in ops if op.kind == "rule" for body in op.bodies for inner in all_ops(body)]
    return {name for op in (*ops, *inside) for name in (op.primitive.name, op.name)}


def _disagree(check: Check, by_autodiff: float, by_differences: float) -> None:
    names = _names(check)
    reason = (
        "it stops a gradient on purpose"
        if "stop_gradient" in names
        else "it jumps or has a kink here"
        if names & kinks.KINKED
        else "a derivative rule inside it is wrong"
    )
    check.report.notes.append(
        f"autodiff of the plain function says {by_autodiff:.6g} along a random direction, finite "
        f"differences say {by_differences:.6g}: {reason}"
    )
    if reason.startswith("a derivative rule"):
        detail = (
            "the oracle is not to be trusted: autodiff of the plain function disagrees with finite "
            f"differences of it ({by_autodiff:.6g} and {by_differences:.6g} along one direction)"
        )
        check.report.findings.append(Finding("", "forward", detail, {"advice": ADVICE}))


def _direction(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = np.maximum(np.abs(leaf), 0.1 * (np.mean(np.abs(leaf)) if leaf.size else 0) + 1e-3)
    return np.asarray(scale * rng.standard_normal(leaf.shape))
