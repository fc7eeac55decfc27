"""What is claimed and what is true, as rows of numbers that edits can be compared with.

Rows are differences from the true gradient, each leaf at each point in its own unit, so that an edit
explains a wrong gradient where its row is the difference of the claimed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis import patterns
from jaxbp.check.oracle import float64

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case
    from jaxbp.check.edits.edit import Edited

ENTRIES = 3000  # looked at per leaf and point, where there are more
FEW, MOST_POINTS = 12, 7


def points(case: Case) -> list[int]:
    """The given point and those at which the claimed gradient is worst: two, or more for small leaves."""
    if "points" not in case.cache:
        case.cache["points"] = _points(case)
    return case.cache["points"]


def _points(case: Case) -> list[int]:
    errors = [
        max((gap(case.got[i][q], case.true[i][q]) for i in case.wrong), default=0.0)
        for q in range(len(case.points))
    ]
    finite = [q for q in range(len(errors)) if np.isfinite(errors[q])]
    rest = sorted((q for q in finite if q), key=lambda q: -errors[q])
    entries = sum(case.true[i][0].size for i in case.wrong)
    return [q for q in (0, *rest) if q in finite][: 3 if entries >= FEW else MOST_POINTS]


def gap(got: np.ndarray, true: np.ndarray) -> float:
    """The relative difference; infinite where the shapes or a value do not allow one."""
    if got.shape != true.shape or not np.all(np.isfinite(got)):
        return np.inf
    return float(np.max(np.abs(got - true), initial=0.0)) / (
        float(np.max(np.abs(true), initial=0.0)) or 1.0
    )


def telling(case: Case) -> int:
    """The point to look at first: the given one, or the worst where the claim is right as given."""
    at = points(case)
    errors = {q: max((gap(case.got[i][q], case.true[i][q]) for i in case.wrong), default=0.0) for q in at}
    tolerance = max((case.tolerance[i] for i in case.wrong), default=0.0)
    return at[0] if errors[at[0]] > 10 * tolerance else max(at, key=lambda q: errors[q])


def usable(case: Case) -> list[int]:
    """The leaves whose claims can be compared."""
    if "usable" not in case.cache:
        case.cache["usable"] = _usable(case)
    return case.cache["usable"]


def _usable(case: Case) -> list[int]:
    return [
        i
        for i in range(len(case.paths))
        if all(g.shape == t.shape for g, t in zip(case.got[i], case.true[i], strict=True))
        and all(np.all(np.isfinite(case.got[i][q])) for q in points(case))
    ]


def difference(case: Case, at: Sequence[int], values: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """`values[point][leaf]` minus the truth, in one row."""
    parts = []
    for q, leaves in zip(at, values, strict=True):
        for i in usable(case):
            true = case.true[i][q]
            scale = float(np.max(np.abs(true), initial=0.0)) or max(patterns.size(case.true[i])) or 1.0
            parts.append((leaves[i] - true).reshape(-1)[_entries(case, i, q)] / scale)
    return np.concatenate(parts) if parts else np.zeros(0)


def _entries(case: Case, i: int, q: int) -> Any:
    """The entries looked at: all, or the most wrong ones and some at random."""
    size = case.true[i][q].size
    if size <= ENTRIES:
        return slice(None)
    key = f"entries {i} {q}"
    if key not in case.cache:
        worst = np.argsort(np.abs(case.got[i][q] - case.true[i][q]).reshape(-1))[-ENTRIES // 2 :]
        rest = np.setdiff1d(np.arange(size), worst)
        some = np.random.default_rng(size).choice(rest, ENTRIES - len(worst), replace=False)
        case.cache[key] = np.concatenate([worst, some])
    return case.cache[key]


def columns(case: Case, at: Sequence[int]) -> dict[int, np.ndarray]:
    """Where each leaf stands in a row."""
    found: dict[int, list[np.ndarray]] = {}
    start = 0
    for _ in at:
        for i in usable(case):
            count = min(case.true[i][0].size, ENTRIES)
            found.setdefault(i, []).append(np.arange(start, start + count))
            start += count
    return {i: np.concatenate(parts) for i, parts in found.items()}


def claimed(case: Case, at: Sequence[int]) -> np.ndarray:
    """The row of the gradient at hand."""
    return difference(case, at, [[g[q] for g in case.got] for q in at])


def effects(
    case: Case,
    edited: Edited,
    rows: Callable[[int], tuple[np.ndarray, np.ndarray]],
    at: Sequence[int],
) -> np.ndarray:
    """The rows of edits: `rows(point)` gives their weights, and what is given with each."""
    runs = []
    for q in at:
        thetas, given = rows(q)
        case.used += len(thetas)
        with float64():
            runs.append(edited.run(thetas, *case.points[q], given))
    count = len(runs[0][0]) if runs else 0
    made = [
        difference(case, at, [[np.asarray(leaf[n]) for leaf in run] for run in runs])
        for n in range(count)
    ]
    return np.nan_to_num(np.stack(made), nan=1e30, posinf=1e30, neginf=-1e30)
