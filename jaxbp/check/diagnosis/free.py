"""A factor that is some other array: found by least squares, where no guess at it is right.

The error that comes back through a product or a bend is linear in the other factor, or in the slopes. So
what stands there in the claim can be solved for, from two cotangents at the same arguments: if one array
explains both, it is a wrong one at this place. What the array is (a multiple, a turn, a part of the right
one; an old one, that is the same at other arguments) is looked at afterwards, as a leaf is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.diagnosis import patterns
from jaxbp.check.diagnosis.claims import claimed, columns, effects, usable
from jaxbp.check.diagnosis.roles import at, role, source
from jaxbp.check.diagnosis.table import recorded, sites_of
from jaxbp.check.diagnosis.where import in_words, wrong_entries
from jaxbp.check.diagnosis.words import origin_of
from jaxbp.check.edits.edit import Edited, Instead, loops
from jaxbp.check.edits.sites import UNARY, Sites
from jaxbp.check.evaluate import again
from jaxbp.check.operations import Constant, Op
from jaxbp.check.oracle import float64
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

LARGEST = 96  # entries of the unknown array: one gradient evaluation each
SHARE = 0.5  # of the budget
MOST_PLACES = 24
SPARE = 1.5  # equations for an unknown, at least
STRAIGHT = {"neg", "convert_element_type", "copy", "reduce_precision", "stop_gradient"}
PRODUCTS = ("dot_general", "conv_general_dilated", "mul", "div")


def another_array(case: Case, group: list[int]) -> Finding | None:
    """One product, or one bend, with another array in the place of the factor or the slopes.

    It has to explain all leaves where `group` are all that are wrong, or else those of the group.
    """
    can = usable(case)
    if not set(group) <= set(can):
        return None
    inside = can if set(group) == set(case.wrong) else group
    if case.oracle.method != "reverse" or not _two_cotangents(case):
        return None
    sites, known = sites_of(case), recorded(case)
    if not known or not known[0]:
        return None
    limit = case.used + SHARE * (case.budget - case.used)
    claim = claimed(case, [0, 1])[np.concatenate([columns(case, [0, 1])[i] for i in inside])]
    wrong = float(np.max(np.abs(claim), initial=0.0))
    if not np.isfinite(wrong) or wrong <= 10 * max(case.tolerance[i] for i in inside):
        return None  # right at these arguments: whatever is wrong is elsewhere
    for n, (op, k, slot, right) in enumerate(_all(case, sites, known[0])[0]):
        if case.used + 2 * right.size > limit:
            case.cut_short = True
            return None
        found = _solve(case, n, right, inside, claim)
        if found is not None:
            return _finding(case, sites, n, (op, k, slot), (right, found), (group, inside))
    return None


def _all(case: Case, sites: Sites, known: Any) -> tuple[list[Any], Edited]:
    """The places, and one compiled program for all of them."""
    if "free" not in case.cache:
        slots = list(itertools.islice(_slots(sites, known), MOST_PLACES))
        case.cache["free"] = slots, Edited(case.oracle, others=[slot for _, _, slot, _ in slots])
    return case.cache["free"]


def _two_cotangents(case: Case) -> bool:
    if len(case.points) < 2:
        return False
    pairs = zip(case.points[0][0], case.points[1][0], strict=True)
    same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    return same and all(np.all(np.isfinite(g[q])) for g in case.got for q in (0, 1))


def _slots(sites: Sites, known: dict[int, np.ndarray]) -> Iterator[tuple[Op, int, Instead, np.ndarray]]:
    """`(operation, operand, edit, the right array)`, the most downstream first."""
    around = loops(sites.program.scope)
    ops = [op for op in sites.ops() if not around[id(op)] and op.kind in ("plain", "rule")]
    for op in sorted(ops, key=lambda op: -sites.rank[id(op)]):
        name = op.primitive.name
        live = [k for k in range(len(op.inputs)) if sites.is_live(op, k)]
        if name in ("dot_general", "conv_general_dilated"):
            for k in live:
                right = _value(op, 1 - k, known)
                if right is not None and 1 < right.size <= LARGEST:
                    yield op, k, Instead(op, k, _product(op, 1 - k), shape=right.shape), right
        elif name in ("mul", "div") or name in UNARY - STRAIGHT or op.kind == "rule":
            shape = op.out_avals[0].shape
            if len(op.outputs) != 1 or not 1 < int(np.prod(shape)) <= LARGEST:
                continue
            for k in live if name in ("mul", "div") or len(live) == 1 else ():
                if op.in_avals[k].shape == shape and op.outputs[0] in known:
                    right = _slope(op, k, known)
                    if right is not None and right.shape == shape:
                        yield op, k, Instead(op, k, _slopes(k), shape=shape), right


def _value(op: Op, k: int, known: dict[int, np.ndarray]) -> np.ndarray | None:
    v = op.inputs[k]
    return np.asarray(v.value, np.float64) if isinstance(v, Constant) else known.get(v)


def _slope(op: Op, k: int, known: dict[int, np.ndarray]) -> np.ndarray | None:
    """The right slopes of a product, a quotient or a bend."""
    if op.primitive.name not in ("mul", "div"):
        values: Any = [_value(op, n, known) for n in range(len(op.inputs))]
        if any(v is None for v in values):
            return None
        with float64():
            x = jnp.asarray(values[k])
            bend = lambda u: again(op, [u if n == k else v for n, v in enumerate(values)])  # noqa: E731
            return np.asarray(jax.jvp(bend, (x,), (jnp.ones_like(x),))[1])
    a, b = _value(op, 0, known), _value(op, 1, known)
    if a is None or b is None:
        return None
    of_product, of_quotient = (b, a), (1 / b, -a / b**2)
    slope = (of_product if op.primitive.name == "mul" else of_quotient)[k]
    return np.broadcast_to(slope, op.out_avals[0].shape)


def _product(op: Op, other: int) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = list(inputs)
        operands[other] = jax.lax.stop_gradient(given)
        return again(op, operands)

    return make


def _slopes(k: int) -> Any:
    return lambda inputs, results, env, given: jax.lax.stop_gradient(given) * jnp.asarray(inputs[k])


def _solve(
    case: Case, n: int, right: np.ndarray, inside: list[int], claim: np.ndarray
) -> np.ndarray | None:
    """The array with which the claims come about; `None` where there is none."""
    key = f"free {n}"
    if key not in case.cache:
        basis = np.concatenate([np.zeros((1, right.size)), np.eye(right.size)])
        case.cache[key] = _effects(case, n, basis, [0, 1])
    made = case.cache[key][:, np.concatenate([columns(case, [0, 1])[i] for i in inside])]
    if not np.max(np.abs(made), initial=0.0) < 1e20:
        return None
    matrix, rest = (made[1:] - made[0]).T, claim - made[0]
    rank = int(
        np.linalg.matrix_rank(matrix, tol=1e-9 * float(np.max(np.abs(matrix), initial=0.0) or 1.0))
    )
    touched = int(np.sum(np.max(np.abs(matrix), axis=1, initial=0.0) > 0))
    touched //= 2 if _one_number(case) else 1
    if rank == 0 or touched < SPARE * rank or touched < rank + 2:
        return None
    solved, *_ = np.linalg.lstsq(matrix, rest, rcond=1e-10)
    limit = 5 * max(case.tolerance[i] for i in inside) * max(1.0, float(np.max(np.abs(claim), initial=0)))
    return solved if np.max(np.abs(matrix @ solved - rest)) <= limit else None


def _one_number(case: Case) -> bool:
    """Whether the output is one number: then a second cotangent says nothing that the first did not."""
    return sum(np.size(d) for d in case.points[0][1]) == 1


def _effects(case: Case, n: int, values: np.ndarray, at_: list[int]) -> np.ndarray:
    """What the arrays, a row each, do to the gradient in place `n`."""
    _, edited = case.cache["free"]
    thetas = np.tile(edited.neutral(), (len(values), 1))
    thetas[:, n] = 1.0
    given = np.zeros((len(values), edited.room))
    start = int(edited.offsets[n])
    given[:, start : start + values.shape[1]] = values
    return effects(case, edited, lambda q: (thetas, given), at_)


def _finding(
    case: Case,
    sites: Sites,
    n: int,
    place: tuple[Op, int, Instead],
    arrays: tuple[np.ndarray, np.ndarray],
    leaves: tuple[list[int], list[int]],
) -> Finding:
    right, solved = arrays[0], arrays[1].reshape(arrays[0].shape)
    (op, k, _), (group, inside) = place, leaves
    # at all others: slopes of ±1, say, are the same at each where no sign turns, and not stale for that
    others = range(2, len(case.points))
    old = bool(others) and all(_same_there(case, n, solved, q, inside) for q in others)
    still = " It is the same at other arguments: it does not follow them." if old else ""
    names = ", ".join(case.paths[i] for i in group)
    evidence: dict[str, Any] = {
        "source": source(op), "file": op.place.file, "line": op.place.line, "operation": op.name,
        "instead": solved.tolist(),
    }  # fmt: skip
    if old:
        evidence["advice"] = (
            "Use the value that this call computes, not one that was kept from an earlier one."
        )
    lost = _lost(solved, right)
    if lost and not old:
        detail = (
            f"the error that comes back through `{op.within or op.name}` {at(op)} is lost in some entries"
        )
        return Finding(names, "missing-rows", f"{names}: {detail}: {lost}", evidence)
    if op.primitive.name not in PRODUCTS:
        detail = (
            f"{names}: the derivative of `{op.within or op.name}` {at(op)} is another function's: by "
            f"least squares its slopes are {_some(solved)}, the same for every cotangent.{still}"
        )
        return Finding(names, "stale" if old else "wrong-activation", detail, evidence)
    what = f"the factor beside {role(op, k)} {at(op)}, {origin_of(case, sites, op, 1 - k)},"
    part: Any = SimpleNamespace(
        paths=[what], got=[[solved]], true=[[right]], tolerance=[1e-5], points=[case.points[0]]
    )
    known = patterns.turned(part, 0, every=True) or patterns.sliced(part, 0)
    if known is not None and known.cause != "scale":
        return Finding(names, known.cause, f"{names}: in the backward pass {known.detail}", evidence)
    detail = (
        f"{names}: in the backward pass another array stands in the place of {what[:-1]}: by least "
        f"squares {_some(solved)}, where {_some(right)} belongs.{still}"
    )
    even = old and np.ptp(solved) <= 1e-6 * np.max(np.abs(solved), initial=0.0)
    return Finding(names, "stale" if old and not even else "wrong-point", detail, evidence)


def _lost(solved: np.ndarray, right: np.ndarray) -> str:
    """Where the solved slopes are 0 and the right ones are not, if all others are right; in words."""
    wrong = wrong_entries(solved, right, 1e-5)
    near = np.abs(solved) <= 1e-5 * float(np.max(np.abs(right), initial=0.0))
    return in_words(wrong) if np.any(wrong) and np.all(near[wrong]) and not np.all(wrong) else ""


def _same_there(case: Case, n: int, solved: np.ndarray, q: int, inside: list[int]) -> bool:
    some = np.concatenate([columns(case, [q])[i] for i in inside])
    made = _effects(case, n, solved.reshape(1, -1), [q])[0][some]
    claim = claimed(case, [q])[some]
    limit = 1e-4 * max(1.0, float(np.max(np.abs(claim), initial=0)))
    return bool(np.max(np.abs(made - claim), initial=0.0) <= limit)


def _some(a: np.ndarray) -> str:
    flat = np.ravel(a)
    shown = ", ".join(f"{v:.4g}" for v in flat[:4])
    return f"[{shown}{', …' if flat.size > 4 else ''}]"
