"""Faults in how the cotangent arrives: some of its entries only, moved, turned, or another output's.

The gradient is linear in the output's cotangent, so the claim is looked for among gradients of changed
cotangents: entry by entry along an axis (weights by least squares), output by output, reversed or moved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check.diagnosis.meaning import indices, meaning_of
from jaxbp.check.diagnosis.patterns import matches
from jaxbp.check.guesses.products import shift
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

Arrays = list[np.ndarray]
Change = Callable[[list[Any]], list[Any]]
LONGEST = 64
MOST_BLOCKS = 8


def by_cotangent(case: Case, i: int) -> Finding | None:
    """Only some entries of the output's cotangent arrive, or arrive elsewhere along an axis."""
    if case.got[i][0].shape != case.true[i][0].shape:
        return None
    dy = [np.asarray(d) for d in case.points[0][1]]
    if len(dy) > 1:
        found = _outputs(case, i, len(dy)) or _exchanged(case, i, dy)
        if found:
            return found
    for k, d in enumerate(dy):
        for axis in range(d.ndim):
            if 1 < d.shape[axis] <= LONGEST:
                found = _rows(case, i, k, (axis,)) or _moved(case, i, k, axis)
                if found:
                    return found
        leading = tuple(range(d.ndim - 1))
        for axes in dict.fromkeys((leading, *itertools.combinations(range(d.ndim), 2))):
            if len(axes) > 1 and 1 < math.prod(d.shape[a] for a in axes) <= LONGEST:
                found = _rows(case, i, k, axes)
                if found:
                    return found
        found = _turned(case, i, k, d) or _lost(case, i, k, d)
        if found:
            return found
    return None


def _gradients(case: Case, i: int, changed: Change) -> Arrays:
    """Leaf `i` of the oracle's gradient at every point, with the cotangents changed."""
    each = range(len(case.points))
    return [case.gradients(q, dy=changed([np.asarray(d) for d in case.points[q][1]]))[i] for q in each]


def _only(k: int, mask: Any) -> Change:
    return lambda dy: [d * mask if m == k else np.zeros_like(d) for m, d in enumerate(dy)]


def _stacked(case: Case, i: int, parts: list[Arrays]) -> np.ndarray:
    """A column for every part, each point in its own unit."""
    columns = [
        np.concatenate([_unit(p, t).ravel() for p, t in zip(part, case.true[i], strict=True)])
        for part in parts
    ]
    return np.stack(columns, 1)


def _unit(a: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.asarray(a / (float(np.max(np.abs(true), initial=0.0)) or 1.0))


def _weights(case: Case, i: int, columns: np.ndarray, claim: np.ndarray) -> np.ndarray | None:
    """Least squares, where they leave nothing over."""
    if columns.shape[0] < 2 * columns.shape[1]:
        return None
    weights, *_ = np.linalg.lstsq(columns, claim, rcond=1e-10)
    scale = max(1.0, float(np.max(np.abs(claim))))
    fits = np.max(np.abs(columns @ weights - claim)) <= 10 * case.tolerance[i] * scale
    return weights if fits else None


# --- several outputs ----------------------------------------------------------------------------------


def _outputs(case: Case, i: int, count: int) -> Finding | None:
    """A weight for the cotangent of each output."""
    if not case.affords(count * len(case.points)):
        return None
    parts = _stacked(case, i, [_gradients(case, i, _only(k, 1.0)) for k in range(count)])
    weights = _weights(case, i, parts, _stacked(case, i, [case.got[i]])[:, 0])
    if weights is None or np.allclose(weights, 1, atol=1e-4):
        return None
    wrong = np.flatnonzero(np.abs(weights - 1) > 1e-4)
    weight = float(weights[wrong[0]])
    path, which = case.paths[i], indices(wrong).replace("index", "output").replace("indices", "outputs")
    evidence: dict[str, Any] = {"outputs": wrong.tolist(), "weights": weights.tolist()}
    known = {0: ("missing-path", "does not come back to"), 2: ("extra-path", "comes back twice to")}
    known[-1] = ("sign", "comes back with the wrong sign to")
    if abs(weight - round(weight)) < 1e-4 and round(weight) in known:
        cause, words = known[round(weight)]
        return Finding(path, cause, f"the cotangent of {which} {words} {path}", evidence)
    meaning = meaning_of(case, abs(weight))
    detail = f"the cotangent of {which} comes back to {path} {weight:.6g} times" + (
        f" ({meaning})" if meaning else ""
    )
    return Finding(path, "scale", detail, {**evidence, "factor": weight})


def _exchanged(case: Case, i: int, dy: list[np.ndarray]) -> Finding | None:
    """The cotangents of two outputs in each other's place."""
    for a, b in itertools.combinations(range(len(dy)), 2):
        if dy[a].shape != dy[b].shape or not case.affords(len(case.points)):
            continue
        order = list(range(len(dy)))
        order[a], order[b] = b, a
        if matches(
            case.got[i], _gradients(case, i, lambda d, o=order: [d[n] for n in o]), case.tolerance[i]
        ):
            detail = f"{case.paths[i]} uses the cotangents of outputs {a} and {b} in each other's place"
            return Finding(case.paths[i], "swapped", detail, {"outputs": [a, b]})
    return None


# --- entries along an axis ----------------------------------------------------------------------------


def _rows(case: Case, i: int, k: int, axes: tuple[int, ...]) -> Finding | None:
    dy = case.points[0][1]
    lengths = [n if a in axes else 1 for a, n in enumerate(np.shape(dy[k]))]
    length = math.prod(lengths)
    if not case.affords((length + 1) * len(case.points)):
        return None
    masks = np.eye(length).reshape(length, *lengths)
    columns = _stacked(case, i, [_gradients(case, i, _only(k, mask)) for mask in masks])
    claim = _stacked(case, i, [case.got[i]])[:, 0]
    if len(dy) > 1:
        claim = claim - (_stacked(case, i, [case.true[i]])[:, 0] - columns.sum(1))
    weights = _weights(case, i, columns, claim)
    if weights is None:
        return None
    return _row_finding(case, i, axes, weights, np.linalg.norm(columns, axis=0))


def _lost(case: Case, i: int, k: int, d: np.ndarray) -> Finding | None:
    """Single entries of the cotangent that do not arrive: which ones may depend on the arguments."""
    same = [q for q in range(min(2, len(case.points))) if _same_leaves(case, q)]
    rows = len(same) * case.true[i][0].size
    if len(case.points[0][1]) > 1 or not 1 < d.size <= LONGEST or rows < 2 * d.size:
        return None
    if not case.affords(d.size * len(same)):
        return None

    def column(mask: np.ndarray) -> np.ndarray:
        parts = [case.gradients(q, dy=[np.asarray(case.points[q][1][k]) * mask])[i] for q in same]
        return np.concatenate([part.ravel() for part in parts])

    claim = np.concatenate([case.got[i][q].ravel() for q in same])
    made = np.stack([column(mask) for mask in np.eye(d.size).reshape(d.size, *d.shape)], 1)
    weights, *_ = np.linalg.lstsq(made, claim, rcond=1e-10)
    seen = np.linalg.norm(made, axis=0) > 1e-9 * max(float(np.max(np.abs(made))), 1e-300)
    gone, there = seen & (np.abs(weights) < 1e-4), seen & (np.abs(weights - 1) < 1e-4)
    fits = np.max(np.abs(made @ weights - claim)) <= 10 * case.tolerance[i] * np.max(np.abs(claim))
    if not fits or np.any(seen & ~gone & ~there) or not np.any(gone) or not np.any(there):
        return None
    first = [int(n) for n in np.argwhere(gone.reshape(d.shape))[0]]
    detail = (
        f"{int(np.sum(gone))} of the {d.size} entries of the cotangent do not arrive in {case.paths[i]} "
        f"(the first at {first}): where several fall on one place, only one of them is kept"
    )
    return Finding(case.paths[i], "missing-rows", detail, {"lost": int(np.sum(gone))})


def _same_leaves(case: Case, q: int) -> bool:
    pairs = zip(case.points[0][0], case.points[q][0], strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _row_finding(
    case: Case, i: int, axes: tuple[int, ...], weights: np.ndarray, norms: np.ndarray
) -> Finding | None:
    path, length = case.paths[i], len(weights)
    seen = norms > 1e-9 * max(float(np.max(norms)), 1e-300)
    weights = np.where(seen, weights, 1.0)
    wrong = np.flatnonzero(np.abs(weights - 1) > 1e-4)
    gone = np.flatnonzero(np.abs(weights) < 1e-5)
    if not len(wrong) or len(wrong) == len(gone) == length or np.ptp(weights) < 1e-5:
        return None
    there = np.flatnonzero(seen & (np.abs(weights) > 1e-5))
    along = f"axis {axes[0]}" if len(axes) == 1 else f"axes {list(axes)}, counted in one,"
    where = f"along {along} of the output (length {length})"
    evidence = {"axis": list(axes), "weights": np.round(weights, 6).tolist()}
    if len(gone) == len(wrong) and len(there) == 1 and length > 2:
        only = f"{path} holds the contribution of {indices(there)} {where} alone"
        return Finding(path, "missing-sum", f"{only}: the sum over it is missing", evidence)
    if len(gone) == len(wrong):
        detail = f"the contribution of {indices(gone)} {where} is missing from {path}"
        return Finding(path, "missing-rows", detail, evidence)
    if np.allclose(weights[wrong], -1, atol=1e-4):
        detail = f"the contribution of {indices(wrong)} {where} to {path} has the wrong sign"
        return Finding(path, "sign", detail, evidence)
    values = ", ".join(f"{w:.4g}" for w in weights[:8]) + (" …" if length > 8 else "")
    detail = f"the entries {where} are weighted {values} in {path} instead of 1 each"
    return Finding(path, "missing-rows", detail, evidence)


# --- moved and turned ---------------------------------------------------------------------------------


def _moves(axis: int, size: int) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    cause = "swapped" if size == 2 else "flip"
    yield "reversed", cause, lambda d: np.flip(d, axis)
    for step in (1, -1):
        yield f"moved by {step}", "missing-rows", lambda d, s=step: shift(d, s, axis)
        yield f"moved round by {step}", "missing-rows", lambda d, s=step: np.roll(d, s, axis)


def _block_moves(axis: int, size: int) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """What a kernel does that is given the wrong block."""
    for count in range(2, min(size // 2, MOST_BLOCKS) + 1):
        if size % count:
            continue

        def arranged(d: np.ndarray, order: list[int], count: int = count) -> np.ndarray:
            parts = np.split(d, count, axis)
            return np.concatenate([parts[n] for n in order], axis)

        blocks = f"in {count} blocks, "
        backwards = list(range(count))[::-1]
        cause = "swapped" if count == 2 else "flip"
        yield blocks + "the last first", cause, lambda d, o=backwards, f=arranged: f(d, o)
        for n in (0, count - 1):
            words = blocks + f"block {n} in the place of all"
            yield words, "missing-rows", lambda d, o=[n] * count, f=arranged: f(d, o)
        for step in (1, -1):
            order = [(n + step) % count for n in range(count)]
            words = blocks + f"each in the place of the one {'before' if step > 0 else 'after'}"
            yield words, "missing-rows", lambda d, o=order, f=arranged: f(d, o)


def _moved(case: Case, i: int, k: int, axis: int) -> Finding | None:
    """The cotangent moved along an axis; reversed, the result may be reversed again."""
    shape, path = np.shape(case.points[0][1][k]), case.paths[i]
    for words, cause, turn in (*_moves(axis, shape[axis]), *_block_moves(axis, shape[axis])):
        if not case.affords(len(case.points)):
            return None
        made = _gradients(case, i, _one(k, turn))
        if matches(case.got[i], made, case.tolerance[i]):
            detail = f"{path} uses the cotangent {words} along axis {axis} of {list(shape)}"
            return Finding(path, cause, detail, {"axis": axis})
        if words == "reversed":
            for back in range(made[0].ndim):
                turned = [np.flip(m, back) for m in made]
                if made[0].shape[back] == shape[axis] and matches(case.got[i], turned, case.tolerance[i]):
                    detail = (
                        f"{path} runs through axis {axis} of the output in the wrong direction "
                        "(from first to last where the error comes back from last to first)"
                    )
                    return Finding(path, "flip", detail, {"axis": axis})
    return None


def _one(k: int, turn: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda dy: [turn(d) if m == k else d for m, d in enumerate(dy)]


def _turned(case: Case, i: int, k: int, d: np.ndarray) -> Finding | None:
    """The cotangent with two axes of the same length exchanged, or filled in another order."""
    path = case.paths[i]
    for a, b in itertools.combinations(range(d.ndim), 2):
        if min(d.shape[a], d.shape[b]) < 2 or not case.affords(len(case.points)):
            continue
        same = d.shape[a] == d.shape[b]
        turn = (lambda t, a=a, b=b: np.swapaxes(t, a, b)) if same else _refilled(a, b)
        if matches(case.got[i], _gradients(case, i, _one(k, turn)), case.tolerance[i]):
            how = "exchanged" if same else "exchanged by a reshape where a transposition belongs"
            detail = f"{path} uses the cotangent with its axes {a} and {b} {how}"
            return Finding(path, "transpose", detail, {"axes": [a, b]})
    return None


def _refilled(a: int, b: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.swapaxes(t, a, b).reshape(t.shape)
