"""From wrong numbers to a cause: the simplest change of the truth that gives what is claimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxbp.check import cuts, patterns
from jaxbp.check.diagonal import diagonal
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.verify import Case

IN_THE_NUMBERS = (patterns.zero, patterns.scaled, patterns.swapped, patterns.turned, patterns.sliced)


def diagnose(case: Case) -> list[Finding]:
    """A finding for every wrong leaf, or one for several that have the same cause."""
    found: dict[int, Finding] = {}
    for i in case.wrong:
        for look in IN_THE_NUMBERS:
            finding = look(case, i)
            if finding is not None:
                found[i] = finding
                break
    path = cuts.path_behind_scale(case, found)
    if path:
        explained = path[0].path.split(", ")
        return [*path, *(found[i] for i in case.wrong if case.paths[i] not in explained)]
    found = _together(case, found)
    open_ = [i for i in case.wrong if i not in found]
    whole = cuts.explain(case, case.wrong) if open_ else None
    if whole:
        return [whole]
    for i in list(open_):
        finding = patterns.by_cotangent(case, i)
        if finding is not None:
            found[i] = finding
            open_.remove(i)
    if open_ and len(open_) < len(case.wrong):
        part = cuts.explain(case, open_)
        if part:
            found.update(dict.fromkeys(open_, part))
            open_ = []
    for i in open_:
        found[i] = (
            cuts.explain(case, [i], alone=True)
            or diagonal(case, i)
            or patterns.updated(case, i)
            or cuts.unknown(case, i)
        )
    if case.cut_short:
        case.notes.append(
            f"the diagnosis was cut short at its budget of {case.budget} gradient evaluations"
        )
    return list({id(found[i]): found[i] for i in case.wrong}.values())


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
        merged = Finding(names, first.cause, detail, first.evidence)
        found.update(dict.fromkeys(members, merged))
    return found
