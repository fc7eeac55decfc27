"""Faults that show in the numbers alone: a leaf that is a multiple, a turn or a part of the truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis.meaning import indices, meaning_of
from jaxbp.check.guesses.products import shift
from jaxbp.check.measure import NOTHING
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

Arrays = list[np.ndarray]


def size(arrays: Arrays) -> list[float]:
    """The scale of a leaf at every point."""
    return [float(np.max(np.abs(a), initial=0.0)) for a in arrays]


def matches(got: Arrays, made: Arrays, tolerance: float) -> bool:
    """Whether `got` is `made` at every point, relative to the larger of the two."""
    for g, m in zip(got, made, strict=True):
        if g.shape != m.shape or not np.all(np.isfinite(m)) or not np.all(np.isfinite(g)):
            return False
        scale = max(np.max(np.abs(g), initial=0.0), np.max(np.abs(m), initial=0.0))
        if np.max(np.abs(g - m), initial=0.0) > tolerance * scale:
            return False
    return True


def factors(got: Arrays, true: Arrays, tolerance: float) -> list[float] | None:
    """The factor at every point where the leaf is a multiple of the truth; `None` where it is not."""
    found = []
    for g, t in zip(got, true, strict=True):
        norm = float(np.vdot(t, t))
        if g.shape != t.shape or not np.all(np.isfinite(g)):
            return None
        if norm == 0 and np.any(np.abs(g) > tolerance):
            return None
        if norm == 0 or not np.isfinite(norm):
            continue
        k = float(np.vdot(t, g)) / norm
        if np.max(np.abs(g - k * t)) > tolerance * max(
            np.max(np.abs(g)), abs(k) * np.max(np.abs(t)), 1e-300
        ):
            return None
        found.append(k)
    return found or None


def zero(case: Case, i: int) -> Finding | None:
    """The rule gives nothing at all."""
    sizes = size(case.true[i])
    if not np.all(np.isfinite(sizes)) or not any(sizes):
        return None
    if any(np.any(np.abs(g) > NOTHING * n) for g, n in zip(case.got[i], sizes, strict=True)):
        return None
    given = case.rule is not None and case.rule.absent[i]
    exactly = not any(np.any(g != 0) for g in case.got[i])
    how = "the rule returns 0 everywhere" if exactly else "the rule returns 0 everywhere, up to rounding,"
    how = "the rule returns None" if given else how
    largest = max(size(case.true[i]))
    detail = f"{how} for {case.paths[i]}, but the function depends on it (entries up to {largest:.3g})"
    return Finding(case.paths[i], "zero", detail, {"largest": largest})


def scaled(case: Case, i: int) -> Finding | None:
    """One factor for the whole leaf, the same at all points or one that an argument explains."""
    if case.true[i][0].size == 1 and len(case.points) < 3:
        return None
    ks = factors(case.got[i], case.true[i], case.tolerance[i])
    if ks is None or all(abs(k) < 1e-9 for k in ks) or all(abs(k - 1) <= case.tolerance[i] for k in ks):
        return None
    k, path = float(np.median(ks)), case.paths[i]
    steady = max(abs(k - other) for other in ks) <= max(10 * case.tolerance[i], 1e-6) * max(map(abs, ks))
    if steady and abs(k + 1) < max(10 * case.tolerance[i], 1e-6):
        return Finding(path, "sign", f"{path} has the wrong sign", {"factor": k})
    if steady:
        meaning = meaning_of(case, abs(k))
        sign = " and has the wrong sign" if k < 0 else ""
        known = f": {meaning}" if meaning else ""
        detail = f"{path} is {abs(k):.6g} times what it should be{sign}{known}"
        return Finding(path, "scale", detail, {"factor": k, "meaning": meaning})
    return _varying(case, i, ks)


def _varying(case: Case, i: int, ks: list[float]) -> Finding | None:
    """A factor that changes with the arguments: a scalar argument, to some power."""
    path = case.paths[i]
    detail = f"{path} is a multiple of what it should be, by a factor that depends on the arguments"
    for j, other in enumerate(case.paths):
        values = [np.asarray(leaves[j]) for leaves, _ in case.points]
        if values[0].size != 1 or len(values) != len(ks):
            continue
        for power, words in (
            (1, other),
            (-1, f"1/{other}"),
            (2, f"{other}²"),
            (-2, f"1/{other}²"),
            (0.5, f"√{other}"),
        ):
            with np.errstate(all="ignore"):
                guess = np.asarray([np.abs(float(v.reshape(()))) ** power for v in values])
            if np.allclose(np.abs(ks), guess, rtol=max(10 * case.tolerance[i], 1e-5)):
                detail = f"{path} is {words} times what it should be"
                return Finding(path, "scale", detail, {"factor": ks, "meaning": words})
    if case.true[i][0].size < 2:
        return None
    return Finding(path, "scale", detail, {"factor": ks, "meaning": ""})


def swapped(case: Case, i: int) -> Finding | None:
    """The cotangent of another leaf."""
    for j in range(len(case.paths)):
        same = case.true[j][0].shape == case.got[i][0].shape
        if j != i and same and matches(case.got[i], case.true[j], case.tolerance[i]):
            detail = f"{case.paths[i]} holds the cotangent of {case.paths[j]}"
            return Finding(case.paths[i], "swapped", detail, {"other": case.paths[j]})
    return None


def turned(case: Case, i: int, every: bool = False) -> Finding | None:
    """Axes in another order, run through the wrong way, or moved along (with `every`, by any step)."""
    path, shape = case.paths[i], case.true[i][0].shape
    for cause, words, turn in (*turns(shape), *(_steps(shape) if every else ())):
        for sign in (1, -1):
            made = [sign * turn(t) for t in case.true[i]]
            if matches(case.got[i], made, case.tolerance[i]):
                also = ", and has the wrong sign" if sign < 0 else ""
                return Finding(path, cause, f"{path} {words}{also}", {"turn": words})
    for cause, words, turn in () if every else turns(shape):
        made = [turn(t) for t in case.true[i]]
        ks = factors(case.got[i], made, case.tolerance[i])
        if ks and cause != "missing-rows":
            return Finding(
                path,
                cause,
                f"{path} {words}, and is {ks[0]:.4g} times what it should be",
                {"turn": words},
            )
    return None


def summed_too_far(case: Case, i: int) -> Finding | None:
    """Every entry holds the sum over its group: a weight of its own, taken for one that is shared."""
    path, shape = case.paths[i], case.true[i][0].shape
    own = [np.asarray(leaves[i], np.float64) for leaves, _ in case.points]
    ones = [np.ones(shape)] * len(own)
    beside = [ones, own, [v**2 for v in own]] if all(np.all(v) for v in own) else [ones]
    for axis, size in enumerate(shape):
        for count in range(1, size // 2 + 1) if size > 1 else ():
            if size % count:
                continue
            for (tiled, words), factor in itertools.product(
                ((False, "next to each other"), (True, f"{count} apart")), beside
            ):
                if tiled and count in (1, size):
                    continue
                made = [
                    _group_sums(t * v, axis, count, tiled) / v
                    for t, v in zip(case.true[i], factor, strict=True)
                ]
                if matches(case.got[i], made, case.tolerance[i]):
                    group = f"all {size}" if count == 1 else f"{size // count}, {words},"
                    detail = (
                        f"every entry of {path} holds the sum of {group} entries along axis {axis}, as "
                        "if they were one shared weight: each has its own gradient"
                    )
                    return Finding(path, "extra-path", detail, {"axis": axis, "groups": count})
    return None


def _group_sums(t: np.ndarray, axis: int, count: int, tiled: bool) -> np.ndarray:
    """Sums over groups of entries along an axis, `count` of them, in the place of every entry."""
    size = t.shape[axis]
    split = (size // count, count) if tiled else (count, size // count)
    apart = t.reshape(*t.shape[:axis], *split, *t.shape[axis + 1 :])
    summed = np.sum(apart, axis=axis if tiled else axis + 1, keepdims=True)
    return np.broadcast_to(summed, apart.shape).reshape(t.shape)


def turns(shape: tuple[int, ...]) -> Iterator[tuple[str, str, Any]]:
    """`(cause, words, function)` for every rearrangement that keeps the shape."""
    rank = len(shape)
    if 1 < rank <= 5:
        for axes in itertools.permutations(range(rank)):
            if axes != tuple(range(rank)) and tuple(shape[a] for a in axes) == shape:
                words = f"has its axes in the order {list(axes)}: it is transposed"
                yield "transpose", words, lambda t, a=axes: np.transpose(t, a)
    for count in range(1, min(rank, 3) + 1):
        for axes in itertools.combinations(range(rank), count):
            if all(shape[a] > 1 for a in axes):
                words = f"runs the wrong way along axis {list(axes)}: it is reversed"
                pair = len(axes) == 1 and shape[axes[0]] == 2
                words = f"has its two entries along axis {axes[0]} exchanged" if pair else words
                yield "swapped" if pair else "flip", words, lambda t, a=axes: np.flip(t, a)
    for axis in range(rank):
        if shape[axis] > 2:
            for step in (1, -1, 2, -2):
                words = f"is moved by {step} along axis {axis}: an off-by-one"
                yield "missing-rows", words, lambda t, a=axis, s=step: np.roll(t, s, a)
                if abs(step) == 1:
                    yield "missing-rows", words, lambda t, a=axis, s=step: shift(t, s, a)
    if rank > 1 and math.prod(shape) > 1:
        for a, b in itertools.combinations(range(rank), 2):
            if shape[a] != shape[b] and shape[a] > 1 and shape[b] > 1:
                words = (
                    f"was filled with axes {a} and {b} exchanged (a reshape where a transpose belongs)"
                )
                yield "transpose", words, lambda t, a=a, b=b: np.swapaxes(t, a, b).reshape(t.shape)
                yield "transpose", words, lambda t, a=a, b=b: _refilled(t, a, b)
    for axis in range(rank):
        if shape[axis] > 2:
            words = f"runs the wrong way along axis [{axis}] after its first entry: reversed in a circle"
            yield "flip", words, lambda t, a=axis: np.roll(np.flip(t, a), 1, a)
        for count in range(2, shape[axis] // 2 + 1):
            if shape[axis] % count == 0:
                if count <= 4:
                    yield from _blocks(axis, count)
                yield _interleaved(shape, axis, count)


def _steps(shape: tuple[int, ...]) -> Iterator[tuple[str, str, Any]]:
    for axis, size in enumerate(shape):
        for step in range(3, size - 2):
            words = f"is moved by {step} along axis {axis} (of {size}, in a circle)"
            yield "missing-rows", words, lambda t, a=axis, s=step: np.roll(t, s, a)


def _refilled(t: np.ndarray, a: int, b: int) -> np.ndarray:
    moved = list(t.shape)
    moved[a], moved[b] = moved[b], moved[a]
    return np.swapaxes(t.reshape(moved), a, b)


def _interleaved(shape: tuple[int, ...], axis: int, count: int) -> tuple[str, str, Any]:
    apart = (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
    words = f"has the {count} blocks along axis {axis} interleaved: block and place in it are exchanged"
    return "transpose", words, lambda t: np.swapaxes(t.reshape(apart), axis, axis + 1).reshape(shape)


def _blocks(axis: int, count: int) -> Iterator[tuple[str, str, Any]]:
    """Two of the equal blocks of an axis (halves, gates) in each other's place."""
    for m, n in itertools.combinations(range(count), 2):
        order = list(range(count))
        order[m], order[n] = n, m
        words = f"has blocks {m} and {n} of the {count} along axis {axis} in each other's place"
        yield (
            "swapped",
            words,
            lambda t, o=order: np.concatenate([np.split(t, count, axis)[k] for k in o], axis),
        )


def sliced(case: Case, i: int) -> Finding | None:
    """Right along some indices of an axis, and zero or a multiple along the others."""
    path, shape = case.paths[i], case.true[i][0].shape
    for axis in range(len(shape)):
        if shape[axis] < 2:
            continue
        ks = [
            _by_index(g, t, axis, case.tolerance[i])
            for g, t in zip(case.got[i], case.true[i], strict=True)
        ]
        known = np.array([[np.nan if v is None else v for v in k] for k in ks if k is not None])
        if len(known) != len(ks) or np.all(np.isnan(known)):
            continue
        usable = ~np.all(np.isnan(known), axis=0)
        low = np.min(np.where(np.isnan(known), np.inf, known), axis=0)
        high = np.max(np.where(np.isnan(known), -np.inf, known), axis=0)
        if np.any(high[usable] - low[usable] > 1e-3 * np.maximum(1, np.abs(high[usable]))):
            continue
        single = case.true[i][0].size == shape[axis]  # then every claim is some multiple, index by index
        middle = np.where(usable, (np.where(usable, low, 0) + np.where(usable, high, 0)) / 2, 1.0)
        multiples = np.unique(np.round(middle[np.abs(middle - 1) > 1e-4], 4))
        if single and len(multiples) > 1 and np.any(multiples != 0):
            continue
        return _slices(path, axis, middle, shape)
    return None


def _slices(path: str, axis: int, ks: np.ndarray, shape: tuple[int, ...]) -> Finding | None:
    wrong = np.flatnonzero(np.abs(ks - 1) > 1e-4)
    gone = np.flatnonzero(np.abs(ks) < 1e-6)
    if not len(wrong):
        return None
    where = f"along axis {axis} (length {shape[axis]})"
    if len(gone) == len(wrong):
        detail = f"{path} has nothing at {indices(gone)} {where}; the rest is right"
        return Finding(path, "missing-rows", detail, {"axis": axis, "rows": gone.tolist()})
    factors = np.unique(np.round(ks[wrong], 5))
    amounts = ", ".join(f"{k:g}" for k in factors[:4]) + (" …" if len(factors) > 4 else "")
    cause = "sign" if np.allclose(ks[wrong], -1, atol=1e-4) else "scale"
    if len(wrong) < shape[axis] and cause == "scale" and shape[axis] > 2 and len(wrong) <= 2:
        cause = "missing-rows"
    detail = f"{path} is {amounts} times what it should be at {indices(wrong)} {where}"
    evidence: dict[str, Any] = {"axis": axis, "rows": wrong.tolist(), "factors": factors.tolist()}
    if cause == "missing-rows":
        evidence["advice"] = "Look for a factor that those entries have and the others have not."
    return Finding(path, cause, detail, evidence)


def _by_index(g: np.ndarray, t: np.ndarray, axis: int, tolerance: float) -> list[float | None] | None:
    if g.shape != t.shape:
        return None
    found: list[float | None] = []
    scale = float(np.max(np.abs(t), initial=0.0)) or 1.0
    for n in range(t.shape[axis]):
        a, b = np.take(g, n, axis), np.take(t, n, axis)
        norm = float(np.vdot(b, b))
        if np.max(np.abs(b), initial=0.0) <= 1e-12 * scale:
            if np.max(np.abs(a), initial=0.0) > tolerance * scale:
                return None
            found.append(None)
            continue
        k = float(np.vdot(b, a)) / norm
        if a.size == 1 and abs(k - 1) > 1e-4 and abs(k) > 1e-6:
            pass
        if np.max(np.abs(a - k * b)) > 10 * tolerance * max(np.max(np.abs(b)), np.max(np.abs(a))):
            return None
        found.append(k)
    return found
