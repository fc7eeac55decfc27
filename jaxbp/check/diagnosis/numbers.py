"""A number of the function that is another one in the gradient: ε, α, a temperature, an exponent.

The gradient depends on such a number smoothly, so it is found as one finds a root: from a few likely
values, the best of them refined, and the result tried at every point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis import words
from jaxbp.check.diagnosis.claims import claimed, columns, effects, points, usable
from jaxbp.check.diagnosis.table import sites_of
from jaxbp.check.edits.edit import CHUNK, Edited
from jaxbp.check.edits.recompute import constants, together, trials
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

STEPS = 8


class _Search:
    """The residuals of claims for moved numbers, in some leaves."""

    def __init__(self, case: Case, edited: Edited, groups: list[list[int]], inside: list[int]):
        self.case, self.edited, self.groups, self.inside = case, edited, groups, inside

    def residuals(self, moves: list[tuple[int, float]], at: list[int]) -> np.ndarray:
        """What is left of the claim for `(group, moved by)`, a row each."""
        thetas = np.tile(self.edited.neutral(), (len(moves), 1))
        for row, (group, amount) in enumerate(moves):
            thetas[row, self.groups[group]] = amount
        made = effects(self.case, self.edited, lambda q: (thetas, np.zeros((len(moves), 0))), at)
        some = np.concatenate([columns(self.case, at)[i] for i in self.inside])
        return claimed(self.case, at)[some] - made[:, some]


def another_number(case: Case, group: list[int], inside: list[int]) -> Finding | None:
    """One number of the function, or one that stands in several places, with another value."""
    if case.oracle.method != "reverse" or not usable(case):
        return None
    changes = case.cache.setdefault("numbers", constants(sites_of(case)))
    if not changes:
        return None
    groups = together(changes)
    edited = case.cache.setdefault("numbers edited", Edited(case.oracle, changes=changes))
    search = _Search(case, edited, groups, inside)
    at = points(case)
    starts = [(n, t) for n, g in enumerate(groups) for t in trials(changes[g[0]].free or 0.0)]
    if case.used + len(starts) + 2 * STEPS * CHUNK > case.budget:
        case.cut_short = True
        return None
    try:
        best = _refined(search, _best(search, starts, at[:1]), at[:1])
    except Exception as error:  # a diagnosis must not hide the verdict
        case.notes.append(f"a part of the search for the cause (numbers) failed: {error!r}"[:300])
        return None
    claim = claimed(case, at)[np.concatenate([columns(case, at)[i] for i in inside])]
    limit = 5 * max(case.tolerance[i] for i in inside) * max(1.0, float(np.max(np.abs(claim), initial=0)))
    fits = [move for move in best if np.max(np.abs(search.residuals([move], at))) <= limit]
    if not fits:
        return None
    n, amount = max(fits, key=lambda move: (len(groups[move[0]]), -move[0]))
    names = ", ".join(case.paths[i] for i in group)
    chosen = [changes[k] for k in groups[n]]
    return words.number(sites_of(case), chosen, (chosen[0].free or 0.0) + amount, names)


def _best(search: _Search, starts: list[tuple[int, float]], at: list[int]) -> list[tuple[int, float]]:
    """The best start of every group, the half of the groups that come nearest."""
    rest = np.linalg.norm(search.residuals(starts, at), axis=1)
    found: dict[int, tuple[float, float]] = {}
    for (n, t), r in zip(starts, rest, strict=True):
        found[n] = min(found.get(n, (np.inf, 0.0)), (float(r), t))
    order = sorted(found, key=lambda n: found[n][0])[: CHUNK // 2]
    return [(n, found[n][1]) for n in order if found[n][0] < 1e20]


def _refined(search: _Search, moves: list[tuple[int, float]], at: list[int]) -> list[tuple[int, float]]:
    """Gauss-Newton in one number, all groups side by side."""
    best: dict[int, tuple[float, float]] = {}
    for _ in range(STEPS):
        if not moves:
            break
        near = [(n, t + _step(t)) for n, t in moves]
        rest: Any = search.residuals([*moves, *near], at)
        here, there = rest[: len(moves)], rest[len(moves) :]
        further = []
        for (n, t), a, b in zip(moves, here, there, strict=True):
            size = float(np.linalg.norm(a))
            best[n] = min(best.get(n, (np.inf, 0.0)), (size, t))
            slope = (b - a) / _step(t)
            norm = float(slope @ slope)
            if np.isfinite(norm) and norm > 0 and size < 1e20 and size <= 10 * best[n][0]:
                further.append((n, t - float(slope @ a) / norm))
        moves = further
    return [(n, t) for n, (_, t) in best.items()]


def _step(t: float) -> float:
    return 1e-6 * max(abs(t), 1e-3)
