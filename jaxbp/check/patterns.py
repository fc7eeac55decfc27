"""Faults that show in the numbers alone: a leaf that is a multiple, a turn or a part of the truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.kinks import operations
from jaxbp.check.oracle import float64
from jaxbp.check.program import Constant, is_float
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.verify import Case

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
    if any(np.any(g != 0) for g in case.got[i]):
        return None
    given = case.rule is not None and case.rule.absent[i]
    how = "the rule returns None" if given else "the rule returns 0 everywhere"
    largest = max(size(case.true[i]))
    detail = f"{how} for {case.paths[i]}, but the function depends on it (entries up to {largest:.3g})"
    return Finding(case.paths[i], "zero", detail, {"largest": largest})


def scaled(case: Case, i: int) -> Finding | None:
    """One factor for the whole leaf, the same at all points or one that an argument explains."""
    if case.true[i][0].size == 1 and len(case.points) < 3:
        return None
    ks = factors(case.got[i], case.true[i], case.tolerance[i])
    if ks is None or all(abs(k) < 1e-9 for k in ks):
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


def meaning_of(case: Case, k: float) -> str:
    """What a factor is, in terms of the sizes and constants in the function."""
    near = max(case.tolerance[i] for i in case.wrong) * 20
    plain = {2.0: "2, as from a square", 0.5: "½", 4.0: "4", 0.25: "¼", 3.0: "3", 1 / 3: "⅓"}
    sizes = _sizes(case)
    ranked: list[tuple[float, str]] = []
    for n, words in sizes.items():
        ranked += [
            (1 / n, f"1/{n}, {words}: a mean in the place of a sum, or one divided twice"),
            (float(n), f"{n}, {words}: a sum in the place of a mean, or a mean's 1/{n} left out"),
        ]
    for n, words in sizes.items():
        ranked.append((math.sqrt(n), f"√{n}, with {n} {words}"))
        ranked.append((1 / math.sqrt(n), f"1/√{n}, with {n} {words}"))
    ranked = [
        (v, w) for v, w in plain.items() if round(v) not in sizes and round(1 / v) not in sizes
    ] + ranked
    ranked = [*ranked, *((v, w) for v, w in plain.items())]
    ranked += [(1 - v, f"1 - {v:g}") for v in _constants(case)]
    for v in _constants(case):
        ranked += [
            (abs(v), f"the constant {v:g} of the function"),
            (1 / abs(v), f"1 over the constant {v:g}"),
        ]
    ranked += [(m / (m - 1), f"{m}/{m - 1}") for m in sizes if m > 1] + [
        ((m - 1) / m, f"{m - 1}/{m}") for m in sizes
    ]
    fits = [words for value, words in ranked if value and abs(k / value - 1) <= near]
    return " (or ".join(fits[:2]) + ")" * (len(fits[:2]) - 1)


def _sizes(case: Case) -> dict[int, str]:
    """Lengths of axes in the arguments, outputs and in between, with what they are."""
    found: dict[int, str] = {}
    outputs = [np.shape(d) for d in case.points[0][1]]
    shapes = [(s, "the output") for s in outputs]
    shapes += [(np.shape(leaf), p) for leaf, p in zip(case.points[0][0], case.paths, strict=True)]
    for shape, name in shapes:
        for axis, n in enumerate(shape):
            if n > 1:
                found.setdefault(n, f"the length of axis {axis} of {name}")
    for op in operations(case.oracle.program):
        for aval in op.out_avals:
            for n in getattr(aval, "shape", ()):
                if n > 1:
                    found.setdefault(n, f"the length of an axis at {op.place}")
    for shape, name in shapes:
        if len(shape) > 1 and math.prod(shape) > 1:
            found.setdefault(math.prod(shape), f"the number of entries of {name}")
        for a, b in itertools.pairwise(shape):
            found.setdefault(a * b, f"the product of two axes of {name}") if a * b > 1 else None
    return found


def _constants(case: Case) -> list[float]:
    """The numbers written in the function."""
    found = {}
    for op in operations(case.oracle.program):
        for v in op.inputs:
            if isinstance(v, Constant) and np.size(v.value) == 1 and is_float(np.asarray(v.value)):
                number = float(np.asarray(v.value).reshape(()))
                if math.isfinite(number) and number not in (0.0, 1.0, -1.0):
                    found[number] = None
    return list(found)


def swapped(case: Case, i: int) -> Finding | None:
    """The cotangent of another leaf."""
    for j in range(len(case.paths)):
        same = case.true[j][0].shape == case.got[i][0].shape
        if j != i and same and matches(case.got[i], case.true[j], case.tolerance[i]):
            detail = f"{case.paths[i]} holds the cotangent of {case.paths[j]}"
            return Finding(case.paths[i], "swapped", detail, {"other": case.paths[j]})
    return None


def turned(case: Case, i: int) -> Finding | None:
    """Axes in another order, run through the wrong way, or moved along."""
    path, shape = case.paths[i], case.true[i][0].shape
    for cause, words, turn in turns(shape):
        for sign in (1, -1):
            made = [sign * turn(t) for t in case.true[i]]
            if matches(case.got[i], made, case.tolerance[i]):
                also = ", and has the wrong sign" if sign < 0 else ""
                return Finding(path, cause, f"{path} {words}{also}", {"turn": words})
    for cause, words, turn in turns(shape):
        made = [turn(t) for t in case.true[i]]
        ks = factors(case.got[i], made, case.tolerance[i])
        if ks and cause != "missing-rows":
            return Finding(
                path, cause, f"{path} {words}, and is {ks[0]:.4g} times too large", {"turn": words}
            )
    return None


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
                yield "flip", words, lambda t, a=axes: np.flip(t, a)
    for axis in range(rank):
        if shape[axis] > 2:
            for step in (1, -1, 2, -2):
                words = f"is moved by {step} along axis {axis}: an off-by-one"
                yield "missing-rows", words, lambda t, a=axis, s=step: np.roll(t, s, a)
                if abs(step) == 1:
                    yield "missing-rows", words, lambda t, a=axis, s=step: _shift(t, s, a)
    if rank > 1 and math.prod(shape) > 1:
        for a, b in itertools.combinations(range(rank), 2):
            if shape[a] != shape[b] and shape[a] > 1 and shape[b] > 1:
                words = (
                    f"was filled with axes {a} and {b} exchanged (a reshape where a transpose belongs)"
                )
                yield "transpose", words, lambda t, a=a, b=b: np.swapaxes(t, a, b).reshape(t.shape)


def _shift(t: np.ndarray, step: int, axis: int) -> np.ndarray:
    moved = np.roll(t, step, axis)
    index: list[Any] = [slice(None)] * t.ndim
    index[axis] = slice(0, step) if step > 0 else slice(step, None)
    moved[tuple(index)] = 0
    return moved


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
        with np.errstate(all="ignore"):
            low, high = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
        usable = ~np.isnan(low)
        if np.any(high[usable] - low[usable] > 1e-3 * np.maximum(1, np.abs(high[usable]))):
            continue
        middle = np.where(usable, (low + high) / 2, 1.0)
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
    return Finding(
        path, cause, detail, {"axis": axis, "rows": wrong.tolist(), "factors": factors.tolist()}
    )


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


def indices(rows: Any) -> str:
    """`index 3`, `indices 0–4`, `indices 1, 3, 5`."""
    rows = [int(r) for r in rows]
    if len(rows) == 1:
        return f"index {rows[0]}"
    if rows == list(range(rows[0], rows[-1] + 1)):
        return f"indices {rows[0]}–{rows[-1]}"
    return "indices " + ", ".join(map(str, rows[:8])) + (" …" if len(rows) > 8 else "")


def by_cotangent(case: Case, i: int) -> Finding | None:
    """Only some entries of the output's cotangent arrive, or arrive elsewhere along an axis."""
    dy = [np.asarray(d) for d in case.points[0][1]]
    for k, d in enumerate(dy):
        for axis in range(d.ndim):
            if 1 < d.shape[axis] <= 64:
                found = _rows(case, i, k, (axis,)) or _moved(case, i, k, axis)
                if found:
                    return found
        leading = tuple(range(d.ndim - 1))
        if len(leading) > 1 and math.prod(d.shape[:-1]) <= 64:
            found = _rows(case, i, k, leading)
            if found:
                return found
    return None


def _gradients(case: Case, changed: Any) -> list[Arrays]:
    """The oracle's gradient at every point, with the cotangents changed."""
    with float64():
        case.used += len(case.points)
        runs = [case.oracle.compiled(leaves, changed(dy)) for leaves, dy in case.points]
    return [[np.asarray(r[i]) for r in runs] for i in range(len(case.paths))]


def _rows(case: Case, i: int, k: int, axes: tuple[int, ...]) -> Finding | None:
    shape = np.shape(case.points[0][1][k])
    lengths = [n if a in axes else 1 for a, n in enumerate(shape)]
    length = math.prod(lengths)
    if case.used + length * len(case.points) > case.budget:
        case.cut_short = True
        return None
    parts = []
    for n in range(length):
        mask = np.zeros(length)
        mask[n] = 1

        def only(dy: list[Any], mask: np.ndarray = mask.reshape(lengths)) -> list[Any]:
            return [d * mask if m == k else d * 0 for m, d in enumerate(dy)]

        parts.append(_gradients(case, only)[i])
    if case.got[i][0].shape != case.true[i][0].shape:
        return None
    columns = np.stack(
        [
            np.concatenate([_unit(p, t).ravel() for p, t in zip(part, case.true[i], strict=True)])
            for part in parts
        ],
        1,
    )
    claimed = np.concatenate(
        [_unit(g, t).ravel() for g, t in zip(case.got[i], case.true[i], strict=True)]
    )
    if columns.shape[0] < 2 * length:
        return None
    weights, *_ = np.linalg.lstsq(columns, claimed, rcond=1e-10)
    scale = max(1.0, float(np.max(np.abs(claimed))))
    if np.max(np.abs(columns @ weights - claimed)) > 10 * case.tolerance[i] * scale:
        return None
    return _row_finding(case, i, axes, weights, np.linalg.norm(columns, axis=0))


def _row_finding(
    case: Case, i: int, axes: tuple[int, ...], weights: np.ndarray, norms: np.ndarray
) -> Finding | None:
    path, length = case.paths[i], len(weights)
    seen = norms > 1e-9 * max(float(np.max(norms)), 1e-300)
    weights = np.where(seen, weights, 1.0)
    wrong = np.flatnonzero(np.abs(weights - 1) > 1e-4)
    gone = np.flatnonzero(np.abs(weights) < 1e-5)
    if not len(wrong) or len(wrong) == len(gone) == length:
        return None
    there = np.flatnonzero(seen & (np.abs(weights) > 1e-5))
    along = f"axis {axes[0]}" if len(axes) == 1 else f"axes {list(axes)}, counted in one,"
    where = f"along {along} of the output (length {length})"
    evidence = {"axis": list(axes), "weights": np.round(weights, 6).tolist()}
    if len(gone) == len(wrong) and len(there) == 1 and length > 2:
        detail = (
            f"{path} holds the contribution of {indices(there)} {where} alone: the sum over it is missing"
        )
        return Finding(path, "missing-sum", detail, evidence)
    if len(gone) == len(wrong):
        detail = f"the contribution of {indices(gone)} {where} is missing from {path}"
        return Finding(path, "missing-rows", detail, evidence)
    if np.ptp(weights) < 1e-5:
        return None
    values = ", ".join(f"{w:.4g}" for w in weights[:8]) + (" …" if length > 8 else "")
    detail = f"the entries {where} are weighted {values} in {path} instead of 1 each"
    return Finding(path, "missing-rows", detail, evidence)


def _unit(a: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.asarray(a / (float(np.max(np.abs(true), initial=0.0)) or 1.0))


def _moved(case: Case, i: int, k: int, axis: int) -> Finding | None:
    shape = np.shape(case.points[0][1][k])
    for words, cause, turn in (
        ("reversed", "flip", lambda d: np.flip(d, axis)),
        ("moved by 1", "missing-rows", lambda d: _shift(np.asarray(d), 1, axis)),
        ("moved by -1", "missing-rows", lambda d: _shift(np.asarray(d), -1, axis)),
        ("moved round by 1", "missing-rows", lambda d: np.roll(d, 1, axis)),
        ("moved round by -1", "missing-rows", lambda d: np.roll(d, -1, axis)),
    ):
        if case.used + len(case.points) > case.budget:
            case.cut_short = True
            return None
        made = _gradients(case, lambda dy, t=turn: [t(d) if m == k else d for m, d in enumerate(dy)])[i]
        if matches(case.got[i], made, case.tolerance[i]):
            detail = f"{case.paths[i]} uses the cotangent {words} along axis {axis} of {list(shape)}"
            return Finding(case.paths[i], cause, detail, {"axis": axis})
    return None


def updated(case: Case, i: int) -> Finding | None:
    """The gradient after a step `-η ∂L/∂p`, with `η` found by Gauss-Newton."""
    for j in range(len(case.paths)):
        found = [_step_size(case, i, j, q) for q in range(min(2, len(case.points)))]
        if all(eta is not None for eta in found):
            path, other = case.paths[i], case.paths[j]
            detail = (
                f"{path} is the gradient at another point: where {other} has already been updated by "
                f"{found[0]:.4g} times its own gradient"
            )
            return Finding(path, "wrong-point", detail, {"step": found[0], "argument": other})
    return None


def _step_size(case: Case, i: int, j: int, q: int) -> float | None:
    """`η` for which the true gradient at `p_j - η ∂L/∂p_j` is the claimed one, at one point."""
    leaves, dy = case.points[q]
    step, goal = case.true[j][q], case.got[i][q]
    scale = float(np.max(np.abs(goal), initial=0.0))
    if not np.any(step) or goal.shape != case.true[i][q].shape or not scale:
        return None

    def gradient(eta: float) -> np.ndarray:
        case.used += 1
        with float64():
            moved = [leaf - eta * step if n == j else leaf for n, leaf in enumerate(leaves)]
            return np.asarray(case.oracle.compiled(moved, dy)[i])

    eta, small = 0.0, 1e-5 / (float(np.max(np.abs(step))) or 1.0)
    for _ in range(12):
        if case.used + 2 > case.budget:
            case.cut_short = True
            return None
        here = gradient(eta)
        rest = goal - here
        if np.max(np.abs(rest)) <= case.tolerance[i] * scale:
            return eta if eta else None
        slope = (gradient(eta + small) - here) / small
        norm = float(np.vdot(slope, slope))
        if not np.isfinite(norm) or norm == 0:
            return None
        eta += float(np.vdot(slope, rest)) / norm
    return None
