"""The right derivative at a wrong place: after an update, at turned or exchanged arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxbp.check.diagnosis.claims import points
from jaxbp.check.diagnosis.patterns import matches
from jaxbp.check.diagnosis.roles import at as place
from jaxbp.check.diagnosis.table import recorded, sites_of
from jaxbp.check.guesses.products import shift
from jaxbp.check.oracle import float64, quick_jit
from jaxbp.check.program import all_ops
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

MOST_STEPS = 12
MOST_VALUES = 12
ORDERED = {"cumsum", "cumprod", "cumlogsumexp", "cummax", "scan", "while"}


def elsewhere(case: Case, i: int) -> Finding | None:
    """The gradient of leaf `i` at other arguments."""
    if case.got[i][0].shape != case.true[i][0].shape:
        return None
    forwards = _forwards(case, i)
    if forwards:
        return forwards
    for cause, words, change in _changes(case):
        if not case.affords(len(case.points)):
            return None
        if matches(case.got[i][:1], [_at(case, 0, i, change)], case.tolerance[i]) and all(
            matches([case.got[i][q]], [_at(case, q, i, change)], case.tolerance[i])
            for q in range(1, len(case.points))
        ):
            detail = f"{case.paths[i]} is the gradient for other arguments: {words}"
            return Finding(case.paths[i], cause, detail, {"arguments": words})
    return _at_values(case, i) or updated(case, i)


def _forwards(case: Case, i: int) -> Finding | None:
    """`J·dy` in the place of `Jᵀ·dy`."""
    shape = case.true[i][0].shape
    if len(case.points[0][1]) != 1 or np.shape(case.points[0][1][0]) != shape or not shape:
        return None

    def tangent(leaves: list[Any], dy: list[Any]) -> Any:
        def along(x: Any) -> Any:
            return case.oracle.outputs([x if n == i else leaf for n, leaf in enumerate(leaves)])[0]

        return jax.jvp(along, (leaves[i],), (dy[0],))[1]

    try:
        with float64():
            compiled = quick_jit(tangent)
            made = [np.asarray(compiled(*point)) for point in case.points]
    except Exception:  # no forward mode here
        return None
    case.used += len(case.points)
    if not matches(case.got[i], made, case.tolerance[i]):
        return None
    along = {op.primitive.name for op in all_ops(case.oracle.program.scope)} & ORDERED
    path = case.paths[i]
    detail = (
        f"{path} is J·dy, the derivative carried forwards, where Jᵀ·dy, the error carried back, belongs"
        + (f": `{min(along)}` has to be run in the opposite direction" if along else "")
    )
    return Finding(path, "flip" if along else "transpose", detail, {"forwards": True})


def _at_values(case: Case, i: int) -> Finding | None:
    """An argument replaced by a value of the function, or by what the rule saved."""
    at, path = points(case), case.paths[i]
    if not at:
        return None
    for j in range(len(case.paths)):
        for words, values in _replacements(case, j, at):
            if not case.affords(len(at)):
                return None
            pairs = zip(at, values, strict=True)
            if all(
                matches([case.got[i][q]], [_at(case, q, i, _put(j, v))], case.tolerance[i])
                for q, v in pairs
            ):
                other = case.paths[j]
                detail = f"{path} is the gradient at another point: at {words}, instead of {other}"
                return Finding(path, "wrong-point", detail, {"argument": other, "instead": words})
    return None


def _replacements(case: Case, j: int, at: list[int]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Values with the shape of leaf `j`, at every point."""
    sites, known, shape = sites_of(case), recorded(case), np.shape(case.points[0][0][j])
    made = [
        v for v in known[0] if v in sites.producer and known[0][v].shape == shape and sites.floating(v)
    ]
    for v in made[:MOST_VALUES]:
        op = sites.producer[v]
        yield f"the result of `{op.name}` {place(op)}", [env[v] for env in known]
    for n, values in enumerate(_saved(case, at)):
        if values[0].shape == shape:
            yield f"part {n} of what the forward pass saved", values


def _put(j: int, value: np.ndarray) -> Any:
    return lambda leaves: [value if n == j else leaf for n, leaf in enumerate(leaves)]


def _saved(case: Case, at: list[int]) -> list[list[np.ndarray]]:
    """What the rule's forward pass keeps, part by part, at every point."""
    if case.target.saved is None:
        return []
    try:
        with float64():
            runs = [
                jax.tree.leaves(case.target.saved(case.target.rebuild(case.points[q][0]))) for q in at
            ]
            return [[np.asarray(v, np.float64) for v in part] for part in zip(*runs, strict=True)]
    except Exception:  # a rule that does not run in float64 has said so elsewhere
        return []


def _at(case: Case, q: int, i: int, change: Any) -> np.ndarray:
    return case.gradients(q, leaves=change([np.asarray(v) for v in case.points[q][0]]))[i]


def _changes(case: Case) -> Iterator[tuple[str, str, Any]]:
    """`(cause, words, change of the leaves)`: transposed, reversed, exchanged, negated."""
    leaves = [np.asarray(v) for v in case.points[0][0]]
    for j, leaf in enumerate(leaves):
        path = case.paths[j]
        for a, b in itertools.combinations(range(leaf.ndim), 2):
            if leaf.shape[a] == leaf.shape[b] > 1:
                turn = lambda v, a=a, b=b: np.swapaxes(v, a, b)  # noqa: E731
                yield "transpose", f"{path} with its axes {a} and {b} exchanged", _one(j, turn)
        for axis in range(leaf.ndim):
            if leaf.shape[axis] > 1:
                yield (
                    "swapped" if leaf.shape[axis] == 2 else "flip",
                    f"{path} reversed along axis {axis}",
                    _one(j, lambda v, a=axis: np.flip(v, a)),
                )
            if leaf.shape[axis] > 2:
                for step in (1, -1):
                    words = f"{path} moved by {step} along axis {axis}"
                    yield "missing-rows", words, _one(j, lambda v, a=axis, s=step: shift(v, s, a))
        yield "wrong-point", f"{path} with the wrong sign", _one(j, np.negative)
    for j, k in itertools.combinations(range(len(leaves)), 2):
        if leaves[j].shape == leaves[k].shape:
            words = f"{case.paths[j]} and {case.paths[k]} in each other's place"
            yield "wrong-point", f"{case.paths[k]} in the place of {case.paths[j]}", _copy(j, k)
            yield "wrong-point", f"{case.paths[j]} in the place of {case.paths[k]}", _copy(k, j)
            yield "swapped", words, _exchange(j, k)


def _one(j: int, turn: Any) -> Any:
    return lambda leaves: [turn(v) if n == j else v for n, v in enumerate(leaves)]


def _exchange(j: int, k: int) -> Any:
    return lambda leaves: [leaves[k if n == j else j if n == k else n] for n in range(len(leaves))]


def _copy(j: int, k: int) -> Any:
    return lambda leaves: [leaves[k if n == j else n] for n in range(len(leaves))]


# --- after an update ----------------------------------------------------------------------------------


def updated(case: Case, i: int) -> Finding | None:
    """The gradient after a step `-η ∂L/∂p`, with `η` found by Gauss-Newton, the same at every point."""
    for j in range(len(case.paths)):
        steps = [_step_size(case, i, j, q) for q in range(min(2, len(case.points)))]
        found = [eta for eta in steps if eta is not None]
        if len(found) == len(steps) and np.ptp(found) <= 1e-3 * abs(found[0]):
            path, other = case.paths[i], case.paths[j]
            detail = (
                f"{path} is the gradient at another point: where {other} has already been updated by "
                f"{found[0]:.4g} times its own gradient"
            )
            return Finding(path, "wrong-point", detail, {"step": found[0], "argument": other})
    return None


def _step_size(case: Case, i: int, j: int, q: int) -> float | None:
    """`η` for which the true gradient at `p_j - η ∂L/∂p_j` is the claimed one, at one point."""
    leaves = [np.asarray(v) for v in case.points[q][0]]
    step, goal = case.true[j][q], case.got[i][q]
    scale = float(np.max(np.abs(goal), initial=0.0))
    if not np.any(step) or goal.shape != case.true[i][q].shape or not scale:
        return None

    def gradient(eta: float) -> np.ndarray:
        moved = [leaf - eta * step if n == j else leaf for n, leaf in enumerate(leaves)]
        return np.asarray(case.gradients(q, leaves=moved)[i])

    eta, small = 0.0, 1e-5 / (float(np.max(np.abs(step))) or 1.0)
    for _ in range(MOST_STEPS):
        if not case.affords(2):
            return None
        here = gradient(eta)
        rest = goal - here
        if np.max(np.abs(rest)) <= case.tolerance[i] * scale:
            return eta if eta else None
        slope = (gradient(eta + small) - here) / small
        norm = float(np.vdot(slope, slope))
        if not np.isfinite(norm) or norm == 0:
            return None
        eta += float(np.vdot(slope, rest)) / norm
    return None
