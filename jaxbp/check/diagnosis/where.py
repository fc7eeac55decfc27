"""Which entries of a leaf are wrong: how many, at which indices, and whether the rest is right or 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxbp.check.diagnosis.meaning import indices
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case


def wrong_entries(got: np.ndarray, true: np.ndarray, tolerance: float) -> np.ndarray:
    """True where the claim is not the truth, relative to the largest true entry."""
    scale = float(np.max(np.abs(true), initial=0.0)) or 1.0
    return np.asarray(np.abs(got - true) > tolerance * scale)


def in_words(wrong: np.ndarray) -> str:
    """`1 of 90000 entries differs, at [5, 7]`, or where the others lie, as far as one can say."""
    count, size = int(np.sum(wrong)), wrong.size
    if count == size or not count:
        return ""
    differ = f"{count} of {size} entries {'differs' if count == 1 else 'differ'}"
    if count == 1:
        return f"{differ}, at {[int(n) for n in np.argwhere(wrong)[0]]}"
    return f"{differ}{_place(wrong)}"


def _place(wrong: np.ndarray) -> str:
    """A grid of indices, a triangle, or nothing that can be said."""
    found = [np.flatnonzero(np.any(wrong, axis=_others(wrong, a))) for a in range(wrong.ndim)]
    if np.prod([len(f) for f in found]) == np.sum(wrong):
        narrow = [(a, f) for a, f in enumerate(found) if len(f) < wrong.shape[a]]
        return ", those at " + " and ".join(f"{indices(f)} of axis {a}" for a, f in narrow)
    if wrong.ndim > 1 and wrong.shape[-1] == wrong.shape[-2]:
        flat = np.any(wrong.reshape(-1, *wrong.shape[-2:]), axis=0)
        for words, part in (("above", np.triu(flat, 1)), ("below", np.tril(flat, -1))):
            if np.array_equal(flat, part):
                return f", all {words} the diagonal of the last two axes"
        if not np.any(flat & ~np.eye(len(flat), dtype=bool)):
            return ", all on the diagonal of the last two axes"
    return ""


def _others(wrong: np.ndarray, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(wrong.ndim) if a != axis)


def partly(case: Case, i: int) -> Finding | None:
    """Every entry is right or 0, or right wherever the truth is not 0: a mask, a pattern, a lost part."""
    got, true = case.got[i], case.true[i]
    if got[0].shape != true[0].shape or got[0].size < 2:
        return None
    wrong = [wrong_entries(g, t, 10 * case.tolerance[i]) for g, t in zip(got, true, strict=True)]
    bad = [q for q, w in enumerate(wrong) if np.any(w)]
    if not bad or sum(int(np.sum(w)) for w in wrong) < 2:
        return None
    path, first = case.paths[i], bad[0]
    place = in_words(wrong[first])
    if all(np.all(got[q][wrong[q]] == 0) for q in bad) and any(np.any(got[q] != 0) for q in bad):
        detail = f"{path} is 0 in some entries and right in all others: {place}"
        return Finding(path, "missing-rows", detail, {"wrong": int(np.sum(wrong[first]))})
    scale = [float(np.max(np.abs(t), initial=0.0)) for t in true]
    outside = all(np.all(np.abs(true[q][wrong[q]]) <= 1e-12 * scale[q]) for q in bad)
    if outside and any(np.any(np.abs(t) > 1e-12 * s) for t, s in zip(true, scale, strict=True)):
        detail = (
            f"{path} is right wherever it should not be 0, and is not 0 where it should be: {place}; "
            "a mask is not applied"
        )
        return Finding(path, "missing-rows", detail, {"wrong": int(np.sum(wrong[first]))})
    return None


def one_triangle(case: Case, i: int) -> Finding | None:
    """The symmetric part is right and the rest is not 0: one triangle holds what belongs in both."""
    got, true = case.got[i], case.true[i]
    shape = true[0].shape
    if got[0].shape != shape or len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        return None
    limit = 10 * case.tolerance[i]
    for g, t in zip(got, true, strict=True):
        turned = np.swapaxes(g, -1, -2)
        if np.any(wrong_entries(t, np.swapaxes(t, -1, -2), limit)):
            return None
        if not np.all(np.isfinite(g)) or np.any(wrong_entries((g + turned) / 2, t, limit)):
            return None
    path, first = case.paths[i], got[0]
    upper, lower = np.any(np.triu(first, 1)), np.any(np.tril(first, -1))
    where = (
        "" if upper and lower else f": the {'lower' if upper else 'upper'} triangle is 0, the other twice"
    )
    detail = f"{path} is not made symmetric, as the gradient of a symmetric matrix is{where}"
    advice = "Return (g + gᵀ)/2, which leaves the diagonal as it is."
    return Finding(path, "transpose", detail, {"advice": advice})
