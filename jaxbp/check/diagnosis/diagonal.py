"""Outputs that are coupled, and a gradient that does not know: only the Jacobian's diagonal is followed.

The slip of the lecture notes. Where it cannot be told from the cut edges (a softmax that subtracts its
maximum has several paths between its entries), it can be told from the Jacobian itself: the claimed
cotangent is `∂y_k/∂x_k dy_k`, entry by entry, at every point that is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxbp.check.diagnosis.patterns import matches
from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.operations import Op, Scope
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

LARGEST = 64  # entries, one gradient evaluation each
POINTS = 2


def diagonal(case: Case, i: int) -> Finding | None:
    """`missing-path`: the contributions of all outputs but an entry's own are left out."""
    if any(len(dy) != 1 for _, dy in case.points):
        return None
    shape = case.true[i][0].shape
    size, points = int(np.prod(shape)), range(min(POINTS, len(case.points)))
    if np.shape(case.points[0][1][0]) != shape or not 1 < size <= LARGEST:
        return None
    if not case.affords(size * len(points)):
        return None
    made = [_own_path(case, i, q) for q in points]
    claimed, true = ([side[i][q] for q in points] for side in (case.got, case.true))
    if matches(true, made, case.tolerance[i]) or not matches(claimed, made, case.tolerance[i]):
        return None  # an elementwise function has no other paths
    mixing = next(_mixing(case.oracle.program.scope), None)
    where = f"the entries are coupled by `{mixing.name}` {at(mixing)}; " if mixing else ""
    detail = (
        f"{case.paths[i]}: the contributions of the other outputs are missing: {where}only the path of "
        "every entry to its own output is followed back, the off-diagonal of the Jacobian is dropped"
    )
    evidence = {"source": source(mixing), "line": mixing.place.line} if mixing else {}
    return Finding(case.paths[i], "missing-path", detail, evidence)


def _own_path(case: Case, i: int, q: int) -> np.ndarray:
    """`∂y_k/∂x_k dy_k` at point `q`: one gradient evaluation an entry."""
    dy = np.asarray(case.points[q][1][0])
    slopes = np.empty(dy.size)
    for k in range(dy.size):
        unit = np.zeros(dy.size)
        unit[k] = 1.0
        slopes[k] = np.ravel(case.gradients(q, dy=[unit.reshape(dy.shape)])[i])[k]
    return dy * slopes.reshape(dy.shape)


def _mixing(scope: Scope) -> Iterator[Op]:
    """The sums (and products of matrices) through which entries meet, the last one first."""
    for op in reversed(scope.ops):
        for body in op.bodies:
            yield from _mixing(body)
        if op.primitive.name in ("reduce_sum", "dot_general", "cumsum", "reduce_max"):
            yield op
