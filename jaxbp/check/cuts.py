"""Faults in the middle of a function: which edited edge turns the true gradient into the claimed one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check import patterns, words
from jaxbp.check.edits import Edge, Edited, Instead
from jaxbp.check.oracle import float64
from jaxbp.check.report import Finding
from jaxbp.check.sites import Sites

if TYPE_CHECKING:
    from jaxbp.check.verify import Case

ENTRIES = 3000  # looked at per leaf and point, chosen at random where there are more
SYMMETRIC = ("mul", "dot_general", "add")


@dataclass(eq=False)
class Table:
    """What every edit of a kind does: `effects[e]` is a row of differences from the true gradient.

    `columns[i]` are the entries of leaf `i` in a row.
    """

    sites: Sites
    edited: Edited
    choices: list[Any]
    at: list[int]
    effects: np.ndarray
    columns: dict[int, np.ndarray]


# --- collecting ---------------------------------------------------------------------------------------


def _points(case: Case) -> list[int]:
    """The given point and the two at which the claimed gradient is worst."""
    errors = [
        max((_gap(case.got[i][q], case.true[i][q]) for i in case.wrong), default=0.0)
        for q in range(len(case.points))
    ]
    finite = [q for q in range(len(errors)) if np.isfinite(errors[q])]
    rest = sorted((q for q in finite if q), key=lambda q: -errors[q])
    return [q for q in (0, *rest) if q in finite][:3]


def _gap(got: np.ndarray, true: np.ndarray) -> float:
    if got.shape != true.shape or not np.all(np.isfinite(got)):
        return np.inf
    return float(np.max(np.abs(got - true), initial=0.0)) / (
        float(np.max(np.abs(true), initial=0.0)) or 1.0
    )


def _usable(case: Case) -> list[int]:
    return [
        i
        for i in range(len(case.paths))
        if all(g.shape == t.shape for g, t in zip(case.got[i], case.true[i], strict=True))
        and all(np.all(np.isfinite(case.got[i][q])) for q in _points(case))
    ]


def _row(case: Case, per_point: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Differences from the truth, each leaf at each point in its own unit, in one vector."""
    parts = []
    for q, values in zip(_points(case), per_point, strict=True):
        for i in _usable(case):
            true = case.true[i][q]
            scale = float(np.max(np.abs(true), initial=0.0))
            scale = scale or max(patterns.size(case.true[i])) or 1.0
            parts.append(_some((values[i] - true).reshape(-1) / scale))
    return np.concatenate(parts) if parts else np.zeros(0)


def _some(flat: np.ndarray) -> np.ndarray:
    if flat.size <= ENTRIES:
        return flat
    return flat[np.random.default_rng(flat.size).choice(flat.size, ENTRIES, replace=False)]


def _columns(case: Case) -> dict[int, np.ndarray]:
    found: dict[int, list[np.ndarray]] = {}
    start = 0
    for _ in _points(case):
        for i in _usable(case):
            count = min(case.true[i][0].size, ENTRIES)
            found.setdefault(i, []).append(np.arange(start, start + count))
            start += count
    return {i: np.concatenate(parts) for i, parts in found.items()}


def _claimed(case: Case) -> np.ndarray:
    return _row(case, [[g[q] for g in case.got] for q in _points(case)])


def _table(case: Case, kind: str) -> Table | None:
    """The effects of every edit of a kind, computed once in a case."""
    if kind not in case.cache:
        try:
            case.cache[kind] = _build(case, kind)
        except Exception as error:  # a diagnosis must not hide the verdict
            case.cache[kind] = None
            case.notes.append(f"the search among {kind} failed: {type(error).__name__}: {error}"[:300])
    return case.cache[kind]


def _build(case: Case, kind: str) -> Table | None:
    if case.oracle.method != "reverse" or not _points(case):
        return None
    sites = case.cache.setdefault("sites", Sites(case.oracle.program))
    choices: list[Any] = getattr(sites, kind)()
    room = max(0, (case.budget - case.used) // len(_points(case)))
    sizes = np.cumsum([getattr(c, "size", 1) for c in choices])
    allowed = int(np.searchsorted(sizes, room, side="right"))
    if allowed < len(choices):
        case.cut_short = True
        choices = sorted(choices, key=lambda c: -sites.rank[id(c.op)])[:allowed]
    if not choices:
        return None
    edges = [c for c in choices if isinstance(c, Edge)]
    others = [c for c in choices if isinstance(c, Instead)]
    edited = Edited(case.oracle, edges, others)
    thetas = np.tile(edited.neutral(), (edited.size, 1))
    thetas[np.arange(edited.size), np.arange(edited.size)] = 0.0
    thetas[np.arange(len(thetas)) >= edited.starts[-1], :] = edited.neutral()
    for n in range(len(others)):
        at = int(edited.starts[-1]) + n
        thetas[at, at] = 1.0
    effects = _effects(case, edited, thetas)
    return Table(
        sites,
        edited,
        [*edges, *others],
        [*map(int, edited.starts[:-1]), *range(int(edited.starts[-1]), edited.size)],
        effects,
        _columns(case),
    )


def _effects(case: Case, edited: Edited, thetas: np.ndarray) -> np.ndarray:
    case.used += len(thetas) * len(_points(case))
    with float64():
        runs = [edited.run(thetas, *case.points[q]) for q in _points(case)]
    rows = [
        _row(case, [[np.asarray(leaf[n]) for leaf in run] for run in runs]) for n in range(len(thetas))
    ]
    return np.nan_to_num(np.stack(rows), nan=1e30, posinf=1e30, neginf=-1e30)


# --- explaining ---------------------------------------------------------------------------------------


def explain(case: Case, group: list[int], alone: bool = False) -> Finding | None:
    """The edit that turns the truth into what is claimed: in all leaves, or in those of `group` alone."""
    usable = set(_usable(case))
    group = [i for i in group if i in usable]
    if not group:
        return None
    inside = group if alone or set(group) != set(case.wrong) else sorted(usable)
    for kind in ("edges", "own_entries", "elementwise", "operands", "rows"):
        table = _table(case, kind)
        if table is None:
            continue
        finding = (_rows if kind == "rows" else _single)(case, table, group, inside)
        if finding:
            return finding
    table = _table(case, "edges")
    return _several(case, table, group, inside) if table else None


def _select(case: Case, table: Table, inside: list[int]) -> tuple[np.ndarray, np.ndarray, float]:
    columns = np.concatenate([table.columns[i] for i in inside])
    tolerance = 5 * max(case.tolerance[i] for i in inside)
    return table.effects[:, columns], _claimed(case)[columns], tolerance


def _single(case: Case, table: Table, group: list[int], inside: list[int]) -> Finding | None:
    effects, claimed, tolerance = _select(case, table, inside)
    limit = tolerance * max(1.0, float(np.max(np.abs(claimed))))
    fits: list[tuple[Any, ...]] = []
    for choice, at in zip(table.choices, table.at, strict=True):
        effect = effects[at]
        norm = float(effect @ effect)
        if norm <= limit**2 or not np.max(np.abs(effect)) < 1e29:
            continue
        amount = float(effect @ claimed) / norm if isinstance(choice, Edge) else 1.0
        if np.max(np.abs(claimed - amount * effect)) <= limit:
            fits.append((choice, amount, at))
    fits = [f for f in fits if _holds(case, table, f, inside, limit)]
    if not fits:
        return None
    choice, amount, _ = max(fits, key=lambda fit: _preference(table, fit))
    names = ", ".join(case.paths[i] for i in group)
    if isinstance(choice, Edge):
        return words.edge(case, table.sites, choice, amount, names)
    return words.instead(case, table.sites, choice, names)


def _preference(table: Table, fit: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whole cuts first, then the most downstream; an operand before a value, a plain cause first."""
    choice, amount, at = fit
    rank = table.sites.rank[id(choice.op)]
    if isinstance(choice, Instead):
        return (-choice.rank, choice.cause in ("factor", "mask"), rank, -at)
    return (abs(amount - 1) < 1e-3, rank, not choice.variable, -at)


def _holds(case: Case, table: Table, fit: tuple[Any, ...], inside: list[int], limit: float) -> bool:
    """An amount that is not a whole cut, in a loop, has to be tried: its effect need not be linear."""
    choice, amount, at = fit
    if isinstance(choice, Instead) or abs(amount - 1) < 1e-3 or table.sites.holder[id(choice.op)] is None:
        return True
    theta = table.edited.neutral()[None].copy()
    theta[0, at] = 1 - amount
    columns = np.concatenate([table.columns[i] for i in inside])
    effect = _effects(case, table.edited, theta)[0][columns]
    return bool(np.max(np.abs(_claimed(case)[columns] - effect)) <= limit)


def _rows(case: Case, table: Table, group: list[int], inside: list[int]) -> Finding | None:
    """Some rows of a sum, or some turns of a loop, do not contribute."""
    effects, claimed, tolerance = _select(case, table, inside)
    for choice, at in sorted(
        zip(table.choices, table.at, strict=True), key=lambda c: -table.sites.rank[id(c[0].op)]
    ):
        columns = effects[at : at + choice.size].T
        if columns.shape[0] < 2 * choice.size or not np.max(np.abs(columns)) < 1e29:
            continue
        amounts, *_ = np.linalg.lstsq(columns, claimed, rcond=1e-10)
        limit = tolerance * max(1.0, float(np.max(np.abs(claimed))))
        if np.max(np.abs(columns @ amounts - claimed)) > limit:
            continue
        seen = np.linalg.norm(columns, axis=0) > 1e-9 * float(np.max(np.abs(columns)))
        weights = np.where(seen, 1 - amounts, 1.0)
        if np.ptp(weights) > 1e-4:
            names = ", ".join(case.paths[i] for i in group)
            return words.rows(table.sites, choice, weights, seen, names)
    return None


def _several(case: Case, table: Table, group: list[int], inside: list[int]) -> Finding | None:
    """Two edges, with weights by least squares."""
    effects, claimed, tolerance = _select(case, table, inside)
    limit = tolerance * max(1.0, float(np.max(np.abs(claimed))))
    norms = np.linalg.norm(effects, axis=1)
    keep = [int(a) for a in np.flatnonzero((norms > limit) & (norms < 1e25))]
    keep = _distinct(effects, keep, table)[:150]
    gram, against = effects[keep] @ effects[keep].T, effects[keep] @ claimed
    best: tuple[float, Any] = (np.inf, None)
    for a, b in itertools.combinations(range(len(keep)), 2):
        block = gram[np.ix_([a, b], [a, b])]
        if abs(np.linalg.det(block)) <= 1e-8 * block[0, 0] * block[1, 1]:
            continue
        amounts = np.linalg.solve(block, against[[a, b]])
        if np.any(np.abs(amounts) > 10):
            continue
        rest = float(claimed @ claimed - amounts @ against[[a, b]])
        if rest <= len(claimed) * limit**2:
            residual = np.max(np.abs(claimed - amounts @ effects[[keep[a], keep[b]]]))
            round_ = float(np.sum(np.abs(amounts - np.round(amounts))))
            if residual <= limit and round_ < best[0]:
                best = (round_, [(keep[a], amounts[0]), (keep[b], amounts[1])])
    if best[1] is None or best[0] > 1e-2:
        return None
    chosen = [(table.choices[table.at.index(at)], amount) for at, amount in best[1]]
    return words.several(table.sites, chosen, ", ".join(case.paths[i] for i in group))


def _distinct(effects: np.ndarray, keep: list[int], table: Table) -> list[int]:
    """One edge, the most downstream, of those with the same effect."""
    keep = sorted(keep, key=lambda a: -table.sites.rank[id(table.choices[table.at.index(a)].op)])
    chosen: list[int] = []
    for a in keep:
        norm = np.linalg.norm(effects[a])
        if all(np.linalg.norm(effects[a] - effects[b]) > 1e-9 * norm for b in chosen):
            chosen.append(a)
    return chosen


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
    if any(i not in found or found[i].cause != "zero" for i in others) or set(scaled) - set(
        _usable(case)
    ):
        return []
    for kind in ("edges", "own_entries"):
        finding = _exact_path(case, kind, list(scaled), others)
        if finding:
            left = f"{finding.detail} (at these arguments that leaves {factors[0]:.6g} of every entry)"
            return [
                Finding(finding.path, finding.cause, left, {**finding.evidence, "factor": factors[0]})
            ]
    return []


def _exact_path(case: Case, kind: str, group: list[int], others: list[int]) -> Finding | None:
    table = _table(case, kind)
    if table is None:
        return None
    effects, claimed, tolerance = _select(case, table, [i for i in _usable(case) if i not in others])
    fits = []
    for choice, at in zip(table.choices, table.at, strict=True):
        values = [v for v in choice.op.inputs if isinstance(v, int)]
        if len(set(values)) < len(values) and choice.op.primitive.name in SYMMETRIC:
            continue
        if np.max(np.abs(claimed - effects[at]), initial=0.0) <= tolerance and np.any(effects[at]):
            fits.append((choice, 1.0, at))
    if not fits:
        return None
    choice, amount, _ = max(fits, key=lambda fit: _preference(table, fit))
    names = ", ".join(case.paths[i] for i in group)
    if isinstance(choice, Edge):
        return words.edge(case, table.sites, choice, amount, names)
    return words.instead(case, table.sites, choice, names)


def unknown(case: Case, i: int) -> Finding:
    """What can be said where no single cause explains a leaf."""
    got, true = case.got[i], case.true[i]
    evidence: dict[str, Any] = {"errors": [_gap(g, t) for g, t in zip(got, true, strict=True)]}
    worst = int(np.argmax([-1 if not np.isfinite(e) else e for e in evidence["errors"]]))
    right = [
        label for label, e in zip(case.labels, evidence["errors"], strict=True) if e <= case.tolerance[i]
    ]
    detail = f"{case.paths[i]} is wrong, and no single cause explains it"
    if right and len(right) < len(case.labels):
        wrong = [label for label in case.labels if label not in right]
        detail += f"; it is right {', '.join(right)}, and wrong {', '.join(wrong)}"
    if got[worst].shape == true[worst].shape and np.any(true[worst]):
        k = float(np.vdot(true[worst], got[worst]) / np.vdot(true[worst], true[worst]))
        norms = np.linalg.norm(true[worst]) * np.linalg.norm(got[worst])
        cosine = float(np.vdot(true[worst], got[worst]) / norms) if norms else 0.0
        evidence |= {"projection": k, "cosine": cosine}
        detail += f" (projected on the truth it is {k:.4g} times as long, with cosine {cosine:.4g})"
    return Finding(case.paths[i], "unknown", detail, evidence)
