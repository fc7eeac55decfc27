"""The one change of autodiff's backward pass that gives what is claimed, in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.backward.edits import Edit, Values, all_edits
from jaxbp.check.backward.program import Backward
from jaxbp.check.diagnosis.claims import FEW, claimed, columns, difference, points, telling, usable
from jaxbp.check.diagnosis.meaning import indices, meaning_of
from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.edits.sites import UNARY
from jaxbp.check.operations import Op
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

SPEND = 600_000  # operations that are run
EXACT = 1e-3
Fit = tuple[int, tuple[bool, int], Edit, Any]
STRAIGHT = (
    "broadcast_in_dim", "reshape", "convert_element_type", "copy", "squeeze", "stop_gradient",
    "transpose",
)  # fmt: skip
ADVICE = {
    "scale": "Compare the factors of that product with those of the formula, one by one.",
    "missing-rows": "Let every index contribute that the forward pass used, and add where several meet.",
}


class Search:
    """The backward pass of a case, with its values at the points that are looked at."""

    def __init__(self, case: Case):
        self.case, self.first = case, telling(case)
        self.at = [self.first, *(q for q in points(case) if q != self.first)]
        self.backward = Backward(case.oracle, *case.points[0])
        self.envs = {q: self.backward.values(*case.points[q]) for q in self.at}
        self.values = Values(self.backward, self.envs[self.first])
        self.claims = {q: claimed(case, [q]) for q in self.at}
        self.columns = {q: columns(case, [q]) for q in self.at}
        self.spent = 0

    def row(self, q: int, edit: Edit, weights: Any = None) -> np.ndarray:
        """What an edit does to the cotangents at a point."""
        made = self.backward.again(self.envs[q], edit.make(weights))
        self.spent += self.backward.spent
        return difference(self.case, [q], [[np.asarray(g) for g in made]])

    def find(self, groups: list[tuple[int, ...]]) -> dict[tuple[int, ...], Fit]:
        """The plainest edit that explains the leaves of each group; of the first group alone, if any."""
        some = {g: {q: np.concatenate([self.columns[q][i] for i in g]) for q in self.at} for g in groups}
        found: dict[tuple[int, ...], list[Fit]] = {g: [] for g in some}
        rank = 0
        for edit in all_edits(self.values):
            if edit.rank > rank:
                rank = edit.rank
                if _found(found[groups[0]], rank) or all(_found(fits, rank) for fits in found.values()):
                    break
            if self.spent > SPEND:
                self.case.cut_short = True
                break
            try:
                with np.errstate(all="ignore"):
                    self._try(edit, {g: some[g] for g in some if not _found(found[g], rank)}, found)
            except (KeyError, ValueError, IndexError, TypeError):
                continue  # that does not stand there
        return {g: min(fits, key=lambda f: f[:2]) for g, fits in found.items() if fits}

    def _try(self, edit: Edit, some: Any, found: Any) -> None:
        q = self.first
        if edit.size:
            basis = [self.row(q, edit, 1.0 - unit) for unit in np.eye(edit.size)]
            made = np.stack(basis, 1)
        else:
            made = self.row(q, edit)[:, None]
        if not np.all(np.isfinite(made)):
            return
        for group, cols in some.items():
            effect, claim = made[cols[q]], self.claims[q][cols[q]]
            limit = self._limit(group, claim)
            if np.max(np.abs(effect), initial=0.0) <= limit:
                continue
            weights = None
            if edit.size:
                if edit.size > 1 and len(claim) < 2 * edit.size:
                    continue
                amounts, *_ = np.linalg.lstsq(effect, claim, rcond=1e-10)
                seen = np.linalg.norm(effect, axis=0) > 1e-9 * np.max(np.abs(effect))
                weights = np.where(seen, 1 - amounts, 1.0)
                if edit.size > 1 and np.ptp(weights) < 1e-4:
                    continue
                rest = claim - effect @ amounts
            else:
                rest = claim - effect[:, 0]
            if np.max(np.abs(rest)) <= limit and self._holds(edit, weights, group, cols):
                rank = edit.rank + (0 if weights is None else _strange(weights))
                order = self.backward.order[id(edit.op)]
                found[group].append((rank, (edit.places > 1, order), edit, weights))

    def _limit(self, group: tuple[int, ...], claim: np.ndarray) -> float:
        size = max(1.0, float(np.max(np.abs(claim), initial=0.0)))
        return 5 * max(self.case.tolerance[i] for i in group) * size

    def _holds(self, edit: Edit, weights: Any, group: tuple[int, ...], cols: Any) -> bool:
        """At the other points too, and on numbers enough."""
        if sum(len(cols[q]) for q in self.at) < max(FEW, 2 * edit.size) and len(self.at) < 3:
            return False
        for q in self.at[0 if edit.size else 1 :]:
            claim = self.claims[q][cols[q]]
            rest = self.row(q, edit, weights)[cols[q]] - claim
            if not np.max(np.abs(rest), initial=0.0) <= 2 * self._limit(group, claim):
                return False
        return True


def _found(fits: list[Fit], rank: int) -> bool:
    return any(fit[0] < rank for fit in fits)


def _strange(weights: np.ndarray) -> int:
    """0 for whole weights, more for others."""
    whole = np.all(np.abs(weights - np.round(weights)) < EXACT)
    return 0 if whole and np.max(np.abs(weights)) <= 2 else 2


def _fits(case: Case) -> tuple[Search, dict[tuple[int, ...], Fit]] | None:
    """What explains all leaves, and each that is wrong; looked for once."""
    if "backward" not in case.cache:
        case.cache["backward"] = None
        can = usable(case)
        some = [i for i in case.wrong if i in can]
        if some and case.oracle.method == "reverse" and points(case):
            try:
                search = Search(case)
                groups = dict.fromkeys([tuple(can), *((i,) for i in some)])
                case.cache["backward"] = search, search.find(list(groups))
            except Exception as error:  # a diagnosis must not hide the verdict
                case.notes.append(f"the backward pass was not looked at: {error!r}"[:300])
    return case.cache["backward"]


def changed(case: Case, leaves: list[int]) -> dict[int, Finding]:
    """For each of some leaves a change that explains all, or that one; the same change is found once."""
    known = _fits(case)
    if known is None:
        return {}
    can = usable(case)
    whole = known[1].get(tuple(can)) if set(leaves) == set(case.wrong) <= set(can) else None
    same: dict[int, tuple[Fit, list[int]]] = {}
    for i in leaves:
        fit = whole or known[1].get((i,))
        if fit:
            same.setdefault(id(fit[2]), (fit, []))[1].append(i)
    found: dict[int, Finding] = {}
    for fit, some in same.values():
        found.update(dict.fromkeys(some, _finding(known[0], fit, some)))
    return found


# --- in words -----------------------------------------------------------------------------------------


def _finding(search: Search, fit: Fit, leaves: list[int]) -> Finding:
    _, _, edit, weights = fit
    op, names = edit.op, ", ".join(search.case.paths[i] for i in leaves)
    cause, words = (edit.cause, f"is {edit.words}") if not edit.size else _weighted(search, edit, weights)
    words = re.sub(r"\{(\d+)\}", lambda m: _value(search, int(m[1])), words)
    evidence: dict[str, Any] = {
        "source": source(op), "file": op.place.file, "line": op.place.line, "operation": _name(op),
    }  # fmt: skip
    if weights is not None:
        evidence["weights"] = np.round(weights, 5).tolist()
    if cause in ADVICE:
        evidence["advice"] = ADVICE[cause]
    detail = f"{names}: the error that comes back through {_through(search, op)} {words}"
    if edit.size == 1 and _inside(search, op, edit.key):
        cause, words = "wrong-activation", f"{words}: a part of its derivative alone"
        detail = f"{names}: the error that comes back through {_through(search, op)} {words}"
    return Finding(names, cause, detail, evidence, "backward")


def _inside(search: Search, op: Op, key: Any) -> bool:
    """Whether an error stays inside of one operation, between two factors of its derivative."""
    if op.origin is None or (op.origin.primitive.name not in UNARY and op.origin.kind != "rule"):
        return False
    made = search.backward.producer.get(op.inputs[key[1]]) if key and key[1] >= 0 else None
    return made is not None and made.origin is op.origin


def _weighted(search: Search, edit: Edit, weights: np.ndarray) -> tuple[str, str]:
    tail = edit.words
    if edit.size == 1:
        w = float(weights[0])
        known = {0: ("missing-path", "is missing"), 2: ("extra-path", "is counted twice")}
        known[-1] = ("sign", "has the wrong sign")
        if abs(w - round(w)) < EXACT and round(w) in known:
            cause, words = known[round(w)]
            return cause, words + tail
        meaning = meaning_of(search.case, abs(w))
        return "scale", f"is {w:.6g} times what it should be" + (
            f" ({meaning})" if meaning else ""
        ) + tail
    along = f"axis {edit.axis} of it" if edit.axis is not None else "the turns of the loop"
    gone, wrong = np.flatnonzero(np.abs(weights) < EXACT), np.flatnonzero(np.abs(weights - 1) > EXACT)
    there = np.flatnonzero(np.abs(weights) >= EXACT)
    if len(gone) == len(wrong) and len(there) == 1 and len(weights) > 2:
        return "missing-sum", f"contributes at {indices(there)} of {along} alone{tail}"
    if len(gone) == len(wrong):
        return "missing-rows", f"is missing at {indices(gone)} of {along}{tail}"
    shown = ", ".join(f"{w:.4g}" for w in weights[:8])
    cause = "sign" if np.allclose(weights[wrong], -1, atol=EXACT) else "scale"
    return cause, f"is weighted {shown} along {along} instead of 1 each{tail}"


def _name(op: Op) -> str:
    return op.origin.name if op.origin is not None else op.name


def _through(search: Search, op: Op) -> str:
    if op in search.backward.returned:
        return (
            f"everything, as it is returned for {search.case.paths[search.backward.returned.index(op)]},"
        )
    if op in search.backward.arriving:
        return "nothing yet, as it arrives,"
    return f"`{_name(op)}` {at(op)}"


def _value(search: Search, v: int) -> str:
    """What a value is: an argument, the result of an operation, or an error on its way."""
    backward = search.backward
    while (op := backward.producer.get(v)) is not None and op.primitive.name in STRAIGHT:
        if not isinstance(op.inputs[0], int):
            break
        v = op.inputs[0]
    if v in backward.scope.inputs:
        n = backward.scope.inputs.index(v)
        return f"the argument {search.case.paths[n]}" if n < backward.count else "the error as it arrives"
    if op is None:
        return "a value of the loop"
    if v in search.values.errors:
        return f"the error that comes back through `{_name(op)}` {at(op)}"
    if op.origin is not None and op.origin.primitive.name == op.primitive.name:
        return f"the result of `{op.name}` {at(op)}"
    return f"a factor in the derivative of `{_name(op)}` {at(op)}"
