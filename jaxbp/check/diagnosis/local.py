"""A factor that differs from entry to entry, but does not depend on the cotangent.

Claim over truth, entry by entry, is the same for two cotangents at the same arguments: what is wrong is a
local derivative, and not how entries are coupled. The factor is then looked for among the function's own
values, to some power.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis.claims import points
from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.diagnosis.table import recorded, sites_of
from jaxbp.check.diagnosis.where import wrong_entries
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

SOME = 0.2  # of the entries: fewer wrong ones are no other function
POWERS = (
    (1.0, "{}"),
    (-1.0, "1/({})"),
    (2.0, "({})²"),
    (-2.0, "1/({})²"),
    (0.5, "√({})"),
    (-0.5, "1/√({})"),
)


def local(case: Case, i: int) -> Finding | None:
    """`scale`, with the value that is left out or put in; or `wrong-activation`, where there is none."""
    several = 2 <= case.true[i][0].size <= sum(np.size(d) for d in case.points[0][1])
    if len(case.points) < 2 or not several or not _same_leaves(case):
        return None
    ratios = [_ratio(case.got[i][q], case.true[i][q]) for q in range(len(case.points))]
    if any(r is None for r in ratios) or not _alike(ratios[0], ratios[1], case.tolerance[i]):
        return None
    wrong = np.sum(wrong_entries(case.got[i][0], case.true[i][0], 10 * case.tolerance[i]))
    if wrong < max(3, SOME * case.true[i][0].size):
        return None
    path = case.paths[i]
    found = _among_values(case, ratios)
    if found:
        words, evidence = found
        detail = f"{path} is, entry by entry, {words} times what it should be"
        return Finding(path, "scale", detail, evidence)
    first = ratios[0]
    assert first is not None
    low, high = float(np.nanmin(first)), float(np.nanmax(first))
    detail = (
        f"{path} is off by a factor that differs from entry to entry (from {low:.4g} to {high:.4g} as "
        "given) and does not depend on the cotangent: the local derivative is another function's"
    )
    return Finding(path, "wrong-activation", detail, {"from": low, "to": high})


def _same_leaves(case: Case) -> bool:
    pairs = zip(case.points[0][0], case.points[1][0], strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _ratio(got: np.ndarray, true: np.ndarray) -> Any:
    """Entry by entry, NaN where the truth is next to nothing; `None` where the claim is not, there."""
    if got.shape != true.shape or not np.all(np.isfinite(got)) or not np.all(np.isfinite(true)):
        return None
    scale = float(np.max(np.abs(true), initial=0.0))
    small = np.abs(true) <= 1e-7 * scale
    if np.any(np.abs(got[small]) > 1e-5 * scale) or np.all(small):
        return None
    return np.where(small, np.nan, got / np.where(small, 1.0, true))


def _alike(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    both = ~(np.isnan(a) | np.isnan(b))
    near = 100 * tolerance * np.maximum(np.abs(a[both]), 1)
    return bool(np.sum(both) > 1 and np.all(np.abs(a[both] - b[both]) <= near))


def _among_values(case: Case, ratios: list[Any]) -> tuple[str, dict[str, Any]] | None:
    """A value of the program, in the leaf's shape or broadcast to it, to some power, at every point."""
    every = points(case)
    if not every:
        return None
    sites, known = sites_of(case), recorded(case)
    inputs = case.oracle.program.scope.inputs
    for v in filter(sites.floating, known[0]):
        values = [env[v] for env in known]
        wanted = [ratios[q] for q in every]
        for power, words in POWERS:
            if all(_is(value, power, ratio) for value, ratio in zip(values, wanted, strict=True)):
                maker = sites.producer.get(v)
                if maker is None:
                    name = case.paths[inputs.index(v)] if v in inputs else "a value of the loop"
                    return words.format(name), {"value": name, "power": power}
                evidence = {"power": power, "source": source(maker), "line": maker.place.line}
                return words.format(f"the result of `{maker.name}` {at(maker)}"), evidence
    return None


def _is(value: np.ndarray, power: float, ratio: np.ndarray) -> bool:
    for shape in (value.shape, (*value.shape, *(1,) * (ratio.ndim - value.ndim))):
        try:
            spread = np.broadcast_to(value.reshape(shape), ratio.shape)
        except ValueError:
            continue
        with np.errstate(all="ignore"):
            made = spread**power
        there = ~np.isnan(ratio)
        if np.allclose(made[there], ratio[there], rtol=1e-5, atol=1e-9):
            return True
    return False
