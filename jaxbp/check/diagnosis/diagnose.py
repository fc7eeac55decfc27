"""From wrong numbers to a cause: the simplest change of the truth that gives what is claimed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.backward import search
from jaxbp.check.diagnosis import cuts, patterns
from jaxbp.check.diagnosis.arriving import by_cotangent
from jaxbp.check.diagnosis.claims import gap
from jaxbp.check.diagnosis.contributions import contribution
from jaxbp.check.diagnosis.diagonal import diagonal
from jaxbp.check.diagnosis.elsewhere import elsewhere
from jaxbp.check.diagnosis.free import another_array
from jaxbp.check.diagnosis.local import local
from jaxbp.check.diagnosis.restated import restated
from jaxbp.check.diagnosis.where import in_words, one_triangle, partly, wrong_entries
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

IN_THE_NUMBERS = (
    patterns.zero, patterns.scaled, patterns.swapped, patterns.turned, patterns.sliced, one_triangle
)  # fmt: skip
BY_ITSELF = (
    diagonal, patterns.summed_too_far, contribution, elsewhere, partly, local
)  # fmt: skip
LIKELY = 0.98  # the share of a difference from which the nearest edit is named


def diagnose(case: Case) -> list[Finding]:
    """A finding for every wrong leaf, or one for several that have the same cause."""
    other = restated(case)
    if other is not None:
        words, short = other
        made = _diagnose(short, guess=False)
        case.used = short.used
        if all(f.cause != "unknown" and "share" not in f.evidence for f in made):
            case.notes.append(f"the function is equal to {words}, and was looked at as that")
            return made
    return _diagnose(case)


def _diagnose(case: Case, guess: bool = True) -> list[Finding]:
    """The same for the function as it is; with `guess`, arrays are solved for where nothing else fits."""
    found: dict[int, Finding] = {}
    for i in case.wrong:
        finding = _first(IN_THE_NUMBERS, case, i)
        if finding is not None:
            found[i] = finding
    path = [replace(f, by="path_behind_scale") for f in cuts.path_behind_scale(case, found)]
    if path:
        explained = path[0].path.split(", ")
        return [*path, *(found[i] for i in case.wrong if case.paths[i] not in explained)]
    found = _together(case, found)
    open_ = [i for i in case.wrong if i not in found]
    whole = cuts.explain(case, case.wrong) if open_ else None
    if whole:
        return [whole]
    _one_by_one(case, open_, found, guess)
    if case.cut_short:
        case.notes.append(
            f"the diagnosis was cut short at its budget of {case.budget} gradient evaluations"
        )
    made = list({id(found[i]): found[i] for i in case.wrong}.values())
    return sorted(made, key=lambda f: f.cause == "unknown")


def _first(looks: Iterable[Callable[..., Finding | None]], case: Case, i: int) -> Finding | None:
    """What the first of `looks` that finds something says, with its name on it."""
    for look in looks:
        finding = look(case, i)
        if finding is not None:
            return replace(finding, by=look.__name__)
    return None


def _one_by_one(case: Case, open_: list[int], found: dict[int, Finding], guess: bool) -> None:
    """What is wrong with each leaf that is not explained yet, or with all of those together."""
    for i in list(open_):
        finding = _first((by_cotangent,), case, i)
        if finding is not None:
            found[i] = finding
            open_.remove(i)
    if open_ and len(open_) < len(case.wrong):
        part = cuts.explain(case, open_)
        if part:
            found.update(dict.fromkeys(open_, part))
            return
    for i in list(open_):
        finding = cuts.explain(case, [i], alone=True) if len(case.paths) > 1 else None
        finding = finding or _first(BY_ITSELF, case, i)
        if finding is not None:
            found[i] = finding
            open_.remove(i)
    changed = search.changed(case, open_) if open_ and guess else {}
    found.update(changed)
    open_ = [i for i in open_ if i not in changed]
    array = another_array(case, open_) if open_ and guess else None
    for i in open_:
        alone = another_array(case, [i]) if array is None and len(open_) > 1 and guess else None
        solved = array or alone
        found[i] = replace(solved, by="another_array") if solved else unknown(case, i)


def _together(case: Case, found: dict[int, Finding]) -> dict[int, Finding]:
    """One finding for leaves that share the same factor or sign."""
    groups: dict[tuple[str, float], list[int]] = {}
    for i, finding in found.items():
        factor = finding.evidence.get("factor")
        if finding.cause in ("sign", "scale") and isinstance(factor, float):
            groups.setdefault((finding.cause, round(factor, 4)), []).append(i)
    for members in groups.values():
        if len(members) < 2:
            continue
        first = found[members[0]]
        names = ", ".join(case.paths[i] for i in members)
        detail = first.detail.replace(case.paths[members[0]], names, 1)
        merged = replace(first, path=names, detail=detail)
        found.update(dict.fromkeys(members, merged))
    return found


def _percent(share: float) -> str:
    """`98 %`; what is not all is never rounded to 100."""
    return f"{math.floor(100 * share)} %" if share < 0.99 else "more than 99 %"


def unknown(case: Case, i: int) -> Finding:
    """What can be said where no single cause explains a leaf: the nearest one, if it is near."""
    got, true = case.got[i], case.true[i]
    evidence: dict[str, Any] = {"errors": [gap(g, t) for g, t in zip(got, true, strict=True)]}
    worst = int(np.argmax([-1 if not np.isfinite(e) else e for e in evidence["errors"]]))
    right = [
        label for label, e in zip(case.labels, evidence["errors"], strict=True) if e <= case.tolerance[i]
    ]
    detail = f"{case.paths[i]} is wrong, and no single cause explains it"
    if got[worst].shape == true[worst].shape and np.all(np.isfinite(got[worst])):
        place = in_words(wrong_entries(got[worst], true[worst], 10 * case.tolerance[i]))
        detail += f"; {place}" if place else ""
    if all(not np.any(t) for t in true):
        detail += (
            "; the true gradient is 0 everywhere: if the rule is meant to look straight through the "
            "function, say what it is the gradient of with reference="
        )
    if right and len(right) < len(case.labels):
        wrong = [label for label in case.labels if label not in right]
        detail += f"; it is right {' and '.join(right)}, and wrong {' and '.join(wrong)}"
    if got[worst].shape == true[worst].shape and np.any(true[worst]):
        k = float(np.vdot(true[worst], got[worst]) / np.vdot(true[worst], true[worst]))
        norms = np.linalg.norm(true[worst]) * np.linalg.norm(got[worst])
        cosine = float(np.vdot(true[worst], got[worst]) / norms) if norms else 0.0
        evidence |= {"projection": k, "cosine": cosine}
        detail += f" (projected on the truth it is {k:.4g} times as long, with cosine {cosine:.4g})"
    near = cuts.nearest(case, i)
    if near is None or near[0] < LIKELY:
        return Finding(case.paths[i], "unknown", detail, evidence)
    share, finding = near
    text = f"{finding.detail} (this explains {_percent(share)} of the difference, and not all of it)"
    return Finding(case.paths[i], finding.cause, text, {**finding.evidence, **evidence, "share": share})
