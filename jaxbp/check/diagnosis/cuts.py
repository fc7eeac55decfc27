"""Faults in the middle of a function: which edit turns the true gradient into the claimed one.

`explain` goes through the tables of edits, the plainest first: an edge cut or weighted, coupled entries
taken apart, another derivative, rows that are missing, a value computed differently, a number that is
another, and at last two edges at once. Of edits that explain a claim equally well, the most downstream
is named.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis import words
from jaxbp.check.diagnosis.claims import FEW, claimed, columns, effects, points, usable
from jaxbp.check.diagnosis.instead import instead
from jaxbp.check.diagnosis.numbers import another_number
from jaxbp.check.diagnosis.table import KINDS, Table, table
from jaxbp.check.edits.edit import Edge
from jaxbp.check.edits.together import Together, Weighted
from jaxbp.check.guesses.formulas import Slip
from jaxbp.check.guesses.shadows import Taken
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

SYMMETRIC = ("mul", "dot_general", "add")
MOST_FITS = 24
MOST_EDGES = 150
EXACT = 1e-3  # how near to 0, 1, 2 or -1 a weight has to be to be called so


def explain(case: Case, group: list[int], alone: bool = False) -> Finding | None:
    """The edit that turns the truth into what is claimed: in all leaves, or in those of `group` alone."""
    can = usable(case)
    group = [i for i in group if i in can]
    if not group:
        return None
    inside = group if alone or set(group) != set(case.wrong) else can
    for kind in KINDS:
        found = table(case, kind)
        if found is not None:
            finding = (_rows if kind == "rows" else _single)(case, found, group, inside)
            if finding:
                return finding if finding.by else replace(finding, by=kind)
        if kind == "rows":
            finding = _turns(case, table(case, "edges"), group, inside)
            if finding:
                return replace(finding, by="turns")
    finding = another_number(case, group, inside)
    if finding:
        return replace(finding, by="another_number")
    edges = table(case, "edges")
    finding = _several(case, edges, group, inside) if edges else None
    return replace(finding, by="two edges") if finding else None


def _select(case: Case, found: Table, inside: list[int]) -> tuple[np.ndarray, np.ndarray, float]:
    """Effects and claim in some leaves, and the largest difference that still counts as none."""
    some = np.concatenate([found.columns[i] for i in inside])
    claim = claimed(case, found.points)[some]
    limit = 5 * max(case.tolerance[i] for i in inside) * max(1.0, float(np.max(np.abs(claim), initial=0)))
    return found.effects[:, some], claim, limit


def _single(case: Case, found: Table, group: list[int], inside: list[int]) -> Finding | None:
    made, claim, limit = _select(case, found, inside)
    fits: list[tuple[int, float]] = []
    for n, at in enumerate(found.starts):
        effect = made[at]
        norm = float(effect @ effect)
        if norm <= limit**2 or not np.max(np.abs(effect)) < 1e29:
            continue
        amount = float(effect @ claim) / norm if _is_edge(found.choices[n]) else 1.0
        if np.max(np.abs(claim - amount * effect)) <= limit:
            fits.append((n, amount))
    fits = sorted(fits, key=lambda fit: _preference(found, fit), reverse=True)[:MOST_FITS]
    for n, amount in fits:
        if _holds(case, found, n, amount, inside, limit):
            finding = _finding(case, found, n, amount, ", ".join(case.paths[i] for i in group))
            return replace(finding, by=_maker(found.choices[n]))
    return None


def _finding(case: Case, found: Table, n: int, amount: float, names: str) -> Finding:
    choice = found.choices[n]
    if isinstance(choice, Weighted):
        return words.edge(case, found.sites, choice, 1 - choice.weight, names)
    loop = _loop_around(found, choice)
    if loop is not None:
        weights = [1.0 - amount if part is choice else 1.0 for part in loop.parts]
        return words.turns(case, found.sites, loop, weights, names)
    if _is_edge(choice):
        return words.edge(case, found.sites, choice, amount, names)
    last = choice.parts[-1] if isinstance(choice, Together) else choice
    if isinstance(last, Slip | Taken):
        return last.finding(case, found.sites, names, len(getattr(choice, "parts", [last])))
    return instead(case, found.sites, choice, names)


def _maker(choice: Any) -> str:
    """The file of what made an edit."""
    if _is_edge(choice) or isinstance(choice, Weighted):
        return "edges"
    last = choice.parts[-1] if isinstance(choice, Together) else choice
    made = getattr(last, "values", None) or getattr(last, "make", None)
    return getattr(made, "__module__", "").removeprefix("jaxbp.check.")


def _is_edge(choice: Any) -> bool:
    """Whether the effect is in proportion to how much of an edge is cut."""
    if isinstance(choice, Weighted):
        return False
    return isinstance(choice.parts[0] if isinstance(choice, Together) else choice, Edge)


def _preference(found: Table, fit: tuple[int, float]) -> tuple[Any, ...]:
    """Whole cuts first, numbers left out, then the most downstream; an operand before a value."""
    n, amount = fit
    choice = found.choices[n]
    rank = found.sites.rank[id(choice.op)]
    if isinstance(choice, Weighted):
        return (False, False, False, rank, True, -n)
    if not _is_edge(choice):
        return (-choice.rank, choice.cause in ("factor", "mask"), rank, -n)
    whole = abs(amount - 1) < EXACT
    number = not whole and bool(words.left_out(found.sites, choice.op, choice.operand, 1 - amount))
    return (whole, number, not isinstance(choice, Together), rank, not choice.variable, -n)


def _holds(case: Case, found: Table, n: int, amount: float, inside: list[int], limit: float) -> bool:
    """At the points that the table leaves out; and a partial cut in a loop need not act in proportion."""
    choice, every = found.choices[n], points(case)
    partial = _is_edge(choice) and abs(amount - 1) >= EXACT
    crooked = found.sites.holder[id(choice.op)] is not None or isinstance(choice, Together)
    if found.points == every and not (partial and crooked):
        return True

    def rows(q: int) -> tuple[np.ndarray, np.ndarray]:
        return found.rows([found.starts[n]], q, 1 - amount) if partial else found.rows([n], q)

    some = np.concatenate([columns(case, every)[i] for i in inside])
    claim = claimed(case, every)[some]
    scale = max(1.0, float(np.max(np.abs(claim), initial=0)))
    limit = max(limit, 5 * max(case.tolerance[i] for i in inside) * scale)
    effect = effects(case, found.edited, rows, every)[0][some]
    return bool(np.max(np.abs(claim - effect)) <= limit)


def _rows(case: Case, found: Table, group: list[int], inside: list[int]) -> Finding | None:
    """Some rows of a sum, or some turns of a loop, do not contribute."""
    made, claim, limit = _select(case, found, inside)
    order = sorted(range(len(found.choices)), key=lambda n: -found.sites.rank[id(found.choices[n].op)])
    for n in order:
        choice, at = found.choices[n], found.starts[n]
        rows = made[at : at + choice.size].T
        if rows.shape[0] < 2 * choice.size or not np.max(np.abs(rows)) < 1e29:
            continue
        amounts, *_ = np.linalg.lstsq(rows, claim, rcond=1e-10)
        if np.max(np.abs(rows @ amounts - claim)) > limit:
            continue
        seen = np.linalg.norm(rows, axis=0) > 1e-9 * float(np.max(np.abs(rows)))
        weights = np.where(seen, 1 - amounts, 1.0)
        if np.ptp(weights) > 1e-4:
            names = ", ".join(case.paths[i] for i in group)
            return words.rows(found.sites, choice, weights, seen, names)
    return None


def _turns(case: Case, found: Table | None, group: list[int], inside: list[int]) -> Finding | None:
    """Some turns of a loop in Python do not contribute to a value that all of them use."""
    if found is None:
        return None
    made, claim, limit = _select(case, found, inside)
    start = {id(c): at for c, at in zip(found.choices, found.starts, strict=True)}
    for choice in found.choices:
        if not isinstance(choice, Together) or not choice.one_value:
            continue
        turns = made[[start[id(part)] for part in choice.parts]].T
        if turns.shape[0] < 2 * turns.shape[1] or not np.max(np.abs(turns), initial=0.0) < 1e29:
            continue
        amounts, *_ = np.linalg.lstsq(turns, claim, rcond=1e-10)
        if np.max(np.abs(turns @ amounts - claim)) <= limit and np.ptp(amounts) > 1e-4:
            names = ", ".join(case.paths[i] for i in group)
            return words.turns(case, found.sites, choice, list(1 - amounts), names)
    return None


def _loop_around(found: Table, choice: Any) -> Together | None:
    """The loop in Python of which an edge is one turn, where its turns use the same value."""
    if not isinstance(choice, Edge):
        return None
    groups = (c for c in found.choices if isinstance(c, Together) and choice in c.parts)
    return next((g for g in groups if g.one_value), None)


# --- two edges ----------------------------------------------------------------------------------------


def _several(case: Case, found: Table, group: list[int], inside: list[int]) -> Finding | None:
    """Two edges, with weights by least squares: whole ones, or the same for both."""
    made, claim, limit = _select(case, found, inside)
    if len(claim) < FEW:
        return None  # so few numbers are explained by some pair of many
    norms = np.linalg.norm(made, axis=1)
    alone = {at for at, c in zip(found.starts, found.choices, strict=True) if isinstance(c, Edge)}
    keep = [int(a) for a in np.flatnonzero((norms > limit) & (norms < 1e25)) if int(a) in alone]
    keep = _distinct(made, keep, found)[:MOST_EDGES]
    gram, against = made[keep] @ made[keep].T, made[keep] @ claim
    best: tuple[float, Any] = (np.inf, None)
    for a, b in itertools.combinations(range(len(keep)), 2):
        block = gram[np.ix_([a, b], [a, b])]
        if abs(np.linalg.det(block)) <= 1e-8 * block[0, 0] * block[1, 1]:
            continue
        amounts = np.linalg.solve(block, against[[a, b]])
        if np.any(np.abs(amounts) > 10):
            continue
        rest = float(claim @ claim - amounts @ against[[a, b]])
        strange = _strangeness(amounts)
        if rest <= len(claim) * limit**2 and strange < min(best[0], 1e-2):
            residual = np.max(np.abs(claim - amounts @ made[[keep[a], keep[b]]]))
            if residual <= limit:
                best = (strange, [(keep[a], amounts[0]), (keep[b], amounts[1])])
    if best[1] is None:
        return None
    chosen = [(found.choices[found.starts.index(at)], amount) for at, amount in best[1]]
    return words.several(case, found.sites, chosen, ", ".join(case.paths[i] for i in group))


def _strangeness(amounts: np.ndarray) -> float:
    """How far two weights are from what somebody writes: whole numbers, or twice the same."""
    whole = float(np.sum(np.abs(amounts - np.round(amounts))))
    same = abs(amounts[0] - amounts[1]) / max(abs(amounts[0]), 1e-12) + 1e-4
    return min(whole, float(same))


def _distinct(made: np.ndarray, keep: list[int], found: Table) -> list[int]:
    """One edge, the most downstream, of those with the same effect."""
    rank = {at: found.sites.rank[id(c.op)] for at, c in zip(found.starts, found.choices, strict=True)}
    chosen: list[int] = []
    for a in sorted(keep, key=lambda a: -rank[a]):
        norm = np.linalg.norm(made[a])
        if all(np.linalg.norm(made[a] - made[b]) > 1e-9 * norm for b in chosen):
            chosen.append(a)
    return chosen


# --- a path behind a factor ---------------------------------------------------------------------------


def path_behind_scale(case: Case, found: dict[int, Finding]) -> list[Finding]:
    """A factor between 0 and 1 that is exactly what is left when one path is dropped.

    Two classes and a one-hot target make the softmax's two paths equally strong: dropping one halves
    everything, and `½` would be true but would not say why. Not where both operands are the same value
    (`x·x`): there the factor is the better name.
    """
    scaled = {i: f.evidence.get("factor") for i, f in found.items() if f.cause == "scale"}
    others = [i for i in case.wrong if i not in scaled]
    factors = list(scaled.values())
    if not factors or not all(isinstance(k, float) and 0 < k < 1 for k in factors):
        return []
    if any(i not in found or found[i].cause != "zero" for i in others) or set(scaled) - set(usable(case)):
        return []
    for kind in ("edges", "coupled"):
        finding = _exact_path(case, kind, list(scaled), others)
        if finding:
            left = f"{finding.detail} (at these arguments that leaves {factors[0]:.6g} of every entry)"
            evidence = {**finding.evidence, "factor": factors[0]}
            return [Finding(finding.path, finding.cause, left, evidence)]
    return []


def _exact_path(case: Case, kind: str, group: list[int], others: list[int]) -> Finding | None:
    tried = table(case, kind)
    if tried is None:
        return None
    made, claim, _ = _select(case, tried, [i for i in usable(case) if i not in others])
    limit = 5 * max(case.tolerance)
    fits = []
    for n, at in enumerate(tried.starts):
        choice = tried.choices[n]
        values = [v for v in choice.op.inputs if isinstance(v, int)]
        if len(set(values)) < len(values) and choice.op.primitive.name in SYMMETRIC:
            continue
        if kind == "coupled" and choice.cause != "missing-path":
            continue
        if np.max(np.abs(claim - made[at]), initial=0.0) <= limit and np.any(made[at]):
            fits.append((n, 1.0))
    if not fits:
        return None
    n, amount = max(fits, key=lambda fit: _preference(tried, fit))
    return _finding(case, tried, n, amount, ", ".join(case.paths[i] for i in group))


# --- nothing fits -------------------------------------------------------------------------------------


def nearest(case: Case, i: int) -> tuple[float, Finding] | None:
    """The edit that comes nearest to the claim, and the share of the difference that it explains."""
    if i not in usable(case):
        return None
    best: tuple[float, Any] = (0.0, None)
    for kind in ("edges", "coupled", "guesses", "formulas", "shadows", "bypasses"):
        found = case.cache.get(kind)
        if found is None:
            continue
        made, claim, limit = _select(case, found, [i])
        whole = float(claim @ claim)
        if not whole > limit**2 or len(claim) < FEW:
            continue
        for n, at in enumerate(found.starts):
            with np.errstate(over="ignore", invalid="ignore"):
                share = 1 - float(np.sum((claim - made[at]) ** 2)) / whole
            if share > best[0] + 1e-9:
                best = (share, (found, n))
    if best[1] is None:
        return None
    found, n = best[1]
    return best[0], _finding(case, found, n, 1.0, case.paths[i])
