"""The right derivative at a wrong place: after an update, at turned or exchanged arguments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.patterns import matches
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.case import Case

MOST_STEPS = 12


def elsewhere(case: Case, i: int) -> Finding | None:
    """The gradient of leaf `i` at other arguments."""
    if case.got[i][0].shape != case.true[i][0].shape:
        return None
    for cause, words, change in _changes(case):
        if not case.affords(len(case.points)):
            return None
        if matches(case.got[i][:1], [_at(case, 0, i, change)], case.tolerance[i]) and all(
            matches([case.got[i][q]], [_at(case, q, i, change)], case.tolerance[i])
            for q in range(1, len(case.points))
        ):
            detail = f"{case.paths[i]} is the gradient for other arguments: {words}"
            return Finding(case.paths[i], cause, detail, {"arguments": words})
    return updated(case, i)


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
                    "flip",
                    f"{path} reversed along axis {axis}",
                    _one(j, lambda v, a=axis: np.flip(v, a)),
                )
        yield "wrong-point", f"{path} with the wrong sign", _one(j, np.negative)
    for j, k in itertools.combinations(range(len(leaves)), 2):
        if leaves[j].shape == leaves[k].shape:
            words = f"{case.paths[j]} and {case.paths[k]} in each other's place"
            yield "swapped", words, _exchange(j, k)
            yield "wrong-point", f"{case.paths[k]} in the place of {case.paths[j]}", _copy(j, k)
            yield "wrong-point", f"{case.paths[j]} in the place of {case.paths[k]}", _copy(k, j)


def _one(j: int, turn: Any) -> Any:
    return lambda leaves: [turn(v) if n == j else v for n, v in enumerate(leaves)]


def _exchange(j: int, k: int) -> Any:
    return lambda leaves: [leaves[k if n == j else j if n == k else n] for n in range(len(leaves))]


def _copy(j: int, k: int) -> Any:
    return lambda leaves: [leaves[k if n == j else n] for n in range(len(leaves))]


# --- after an update ----------------------------------------------------------------------------------


def updated(case: Case, i: int) -> Finding | None:
    """The gradient after a step `-η ∂L/∂p`, with `η` found by Gauss-Newton."""
    for j in range(len(case.paths)):
        found = [_step_size(case, i, j, q) for q in range(min(2, len(case.points)))]
        if all(eta is not None for eta in found):
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
