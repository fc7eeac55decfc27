"""One contribution to a leaf that is turned, moved or incomplete, while the others are right.

Where a leaf is used in several places its cotangent is a sum. The table of cut edges holds every term of
it; the claim less the other terms is what was made of that one, and is looked at as a leaf is:
transposed, reversed, moved along an axis, right in some rows only.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis import patterns
from jaxbp.check.diagnosis.claims import ENTRIES, usable
from jaxbp.check.diagnosis.roles import at, role, source
from jaxbp.check.diagnosis.table import table
from jaxbp.check.edits.edit import Edge
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

MOST = 40
LEAST = 1e-6  # of the leaf's largest entry: a smaller contribution is not looked at
SMALLEST = 100.0  # times smaller than the leaf


def contribution(case: Case, i: int) -> Finding | None:
    """What is wrong with one of the terms of leaf `i`."""
    found = table(case, "edges")
    if found is None or i not in usable(case) or case.true[i][0].size > ENTRIES:
        return None
    for op, k, terms in _terms(case, found, i):
        finding = _of(case, i, found.points, terms)
        if finding is not None:
            through = f"the contribution that comes back through {role(op, k)} {at(op)}"
            detail = finding.detail.replace(case.paths[i], through, 1)
            evidence = {**finding.evidence, "source": source(op), "line": op.place.line}
            return Finding(case.paths[i], finding.cause, f"{case.paths[i]}: {detail}", evidence)
    return None


def _terms(case: Case, found: Any, i: int) -> Any:
    """`(operation, operand, term at every point)`, downstream first, one of those that are equal."""
    columns, shape = found.columns[i], case.true[i][0].shape
    scales = [
        float(np.max(np.abs(case.true[i][q]), initial=0.0)) or max(patterns.size(case.true[i])) or 1.0
        for q in found.points
    ]
    order = [n for n, c in enumerate(found.choices) if isinstance(c, Edge) and not c.variable]
    seen: list[np.ndarray] = []
    for n in sorted(order, key=lambda n: -found.sites.rank[id(found.choices[n].op)]):
        term = -found.effects[found.starts[n]][columns]
        if not np.max(np.abs(term), initial=0.0) > LEAST or not np.max(np.abs(term)) < 1e20:
            continue
        if any(np.allclose(term, other, rtol=1e-9, atol=1e-12) for other in seen):
            continue
        seen.append(term)
        parts = np.split(term, len(found.points))
        scaled = [(p * s).reshape(shape) for p, s in zip(parts, scales, strict=True)]
        yield found.choices[n].op, found.choices[n].operand, scaled
        if len(seen) >= MOST:
            return


def _of(case: Case, i: int, points: list[int], terms: list[np.ndarray]) -> Finding | None:
    true = [case.true[i][q] for q in points]
    if all(np.max(np.abs(t - w), initial=0.0) <= case.tolerance[i] * np.max(np.abs(w)) for t, w in zip(
        terms, true, strict=True
    )):  # fmt: skip
        return None  # the only term: that has been looked at
    got = [case.got[i][q] - w + t for q, w, t in zip(points, true, terms, strict=True)]
    size = max(patterns.size(true)) / (min(patterns.size(terms)) or 1e-300)
    if size > SMALLEST:
        return None  # what is made of so small a term is not seen in the claim
    part: Any = SimpleNamespace(
        paths=case.paths,
        got={i: got},
        true={i: terms},
        tolerance={i: case.tolerance[i] * max(size, 1.0)},
        points=[case.points[q] for q in points],
    )
    return patterns.turned(part, i, every=True) or patterns.sliced(part, i)
