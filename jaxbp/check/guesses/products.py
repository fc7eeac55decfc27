"""Products differentiated with another value, or with a turned one, in the place of a factor.

For a matrix product or a convolution the guess is the other factor. For an elementwise product or
quotient it is the partial derivative itself, an array of slopes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.diagnosis.roles import role
from jaxbp.check.edits.edit import Instead, loops
from jaxbp.check.edits.series import turns_beside, ways
from jaxbp.check.edits.sites import Sites
from jaxbp.check.evaluate import again
from jaxbp.check.guesses import chains
from jaxbp.check.guesses.factors import lost
from jaxbp.check.guesses.stretches import Guess, Values
from jaxbp.check.operations import Constant, Op, Scope

CONTRACTIONS = {"dot_general", "conv_general_dilated"}
MOST_VALUES = 24
MOST_NUMBERS = 8  # where any number may happen to fit
MOST_TAPS = 25


def guesses(sites: Sites, known: Values) -> list[Guess]:
    """What may have been written in the place of every product's derivative."""
    found: list[Guess] = []
    around = loops(sites.program.scope)
    for op in sites.ops():
        name = op.primitive.name
        if name in CONTRACTIONS | {"mul", "div"} and len(op.inputs) == 2 and op.outputs[0] in known:
            for k in (0, 1):
                if sites.is_live(op, k) and _value(op, 1 - k, known) is not None:
                    depth = len(around[id(op)])
                    make = _contraction if name in CONTRACTIONS else _elementwise
                    found += make(sites, op, k, known, depth)
        found += _times_itself(sites, op, known)
    return found


def _times_itself(sites: Sites, op: Op, known: Values) -> Iterator[Guess]:
    """The error of a value with several uses times the value, as where a division by it is left out."""
    v = op.outputs[0] if len(op.outputs) == 1 else None
    uses = [o for o in sites.home[id(op)].ops if v in o.inputs]
    if v not in sites.live or v not in known or len(uses) < 2 or not op.out_avals[0].shape:
        return
    if op.kind not in ("plain", "rule"):
        return

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        return jax.lax.stop_gradient(given) * again(op, inputs)

    slot = Instead(op, -1, make, shape=known[v].shape, about="result")
    yield Guess(slot, "scale", "multiplied by it, or not divided by it", lambda env, s: env[v])
    yield Guess(slot, "scale", "divided by it, or not multiplied by it", lambda env, s: 1 / env[v])
    for total in (o for o in uses if o.primitive.name == "reduce_sum" and o.outputs[0] in known):
        axes, depth = total.params["axes"], known[v].ndim - len(op.out_avals[0].shape)
        spread = lambda env, t=total.outputs[0], a=tuple(depth + n for n in axes): np.broadcast_to(  # noqa: E731
            np.expand_dims(env[t], a), known[v].shape
        )
        words = "multiplied by its sum, or not divided by it: it is not normalised"
        yield Guess(slot, "wrong-point", words, lambda env, s, f=spread: f(env))


def _value(op: Op, k: int, known: Values) -> np.ndarray | None:
    v = op.inputs[k]
    return np.asarray(v.value, np.float64) if isinstance(v, Constant) else known.get(v)


def _others(sites: Sites, op: Op, shape: tuple[int, ...], known: Values) -> list[tuple[int, str, str]]:
    """`(value, cause, words)` for values of this shape in the same scope."""
    scope, here = sites.home[id(op)], sites.rank[id(op)]
    later = _carried(scope, sites.holder[id(op)], op.inputs)
    found = []
    near = sorted(scope.ops, key=lambda p: abs(sites.rank[id(p)] - here))
    turns = [u for v in op.inputs if isinstance(v, int) for u in turns_beside(sites, v)]
    for v in dict.fromkeys((*turns, *scope.inputs, *(o for p in near for o in p.outputs))):
        if v in op.inputs or v not in known or sites.shape.get(v) != shape or not sites.floating(v):
            continue
        if v in later:
            words = "the new state of a turn in the place of the old one: off by one in time"
            found.append((v, "wrong-point", words))
        else:
            found.append((v, "wrong-point", sites.describe(v)))
    return found[: MOST_VALUES if shape else MOST_NUMBERS]


def _carried(scope: Scope, holder: Op | None, values: list[Any]) -> list[int]:
    """What the next turn of the loop gets for the carries among the values."""
    if holder is None or holder.kind != "scan":
        return []
    loop = holder.loop
    at = [scope.inputs.index(v) - loop.consts for v in values if v in scope.inputs]
    return [scope.outputs[k] for k in at if 0 <= k < loop.carry and isinstance(scope.outputs[k], int)]


# --- matrix products and convolutions -----------------------------------------------------------------


def _contraction(sites: Sites, op: Op, k: int, known: Values, depth: int) -> Iterator[Guess]:
    other = 1 - k
    shape = op.in_avals[other].shape
    here = _value(op, other, known)
    assert here is not None
    constant = isinstance(op.inputs[other], Constant)
    lengths = known[op.outputs[0]].shape[:depth]

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = list(inputs)
        operands[other] = jax.lax.stop_gradient(given)
        return again(op, operands)

    def spread(v: np.ndarray) -> np.ndarray:
        return np.broadcast_to(v, (*lengths, *shape))

    def factor(env: Values) -> np.ndarray:
        return spread(here if constant else env[op.inputs[other]])

    slot = Instead(op, k, make, shape=(*lengths, *shape))
    if shape and not constant:
        words = "1 everywhere: it is left out of the backward pass"
        yield Guess(slot, "scale", words, lambda env, s: spread(np.ones(shape)))
    for words, cause, turn in _turns(op, other, shape):
        yield Guess(slot, cause, words, lambda env, s, t=turn: _along(t, factor(env), depth))
    for axis in range(depth):
        for step, words, cause in (
            (0, "the other factor in the reverse order of the turns", "flip"),
            (1, "the other factor of the turn before", "wrong-point"),
            (-1, "the other factor of the turn after", "wrong-point"),
        ):
            turn = (lambda v, a=axis: np.flip(v, a)) if not step else None
            turn = turn or (lambda v, s=step, a=axis: shift(v, s, a))
            yield Guess(slot, cause, words, lambda env, s, t=turn: t(factor(env)))
    square = np.square
    yield Guess(slot, "scale", "the square of the other factor", lambda env, s: square(factor(env)))
    if shape:
        for v, cause, words in _others(sites, op, shape, known):
            make_ = lambda env, s, v=v: spread(env[v])  # noqa: E731
            yield Guess(slot, cause, words, make_, rank=1, ways=ways(sites, op, v, words))
        for v, words, order in _transposed_others(sites, op, other, known, depth):
            turn = lambda env, s, v=v, o=order: spread(np.transpose(env[v], o))  # noqa: E731
            yield Guess(slot, "wrong-point", words, turn, rank=1, ways=ways(sites, op, v, words))
    for what, cause, without in chains.without(sites, op.inputs[other], known, depth):
        words = f"the other factor without {what}"
        yield Guess(slot, cause, words, lambda env, s, w=without: spread(w(env)))
    for words, value in chains.other_softmaxes(sites, op.inputs[other], known, depth):
        yield Guess(slot, "transpose", words, lambda env, s, v=value: spread(v(env)))
    if op.primitive.name == "conv_general_dilated":
        for words, keep in _taps(op, other, shape):
            yield Guess(slot, "missing-rows", words, lambda env, s, m=keep: factor(env) * m)


def _transposed_others(
    sites: Sites, op: Op, other: int, known: Values, depth: int
) -> Iterator[tuple[int, str, list[int]]]:
    """Where the other factor is a transposed value: other values of that shape, transposed alike."""
    v = op.inputs[other]
    maker = sites.producer.get(v) if isinstance(v, int) else None
    if maker is None or maker.primitive.name != "transpose" or not isinstance(maker.inputs[0], int):
        return
    order = [*range(depth), *(depth + a for a in maker.params["permutation"])]
    shape = tuple(maker.in_avals[0].shape)
    for value, _, words in _others(sites, op, shape, known):
        if value != maker.inputs[0] and known[value].ndim == len(order):
            yield value, f"{words}, transposed", order


def _taps(op: Op, other: int, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """One entry of the kernel alone, or all but one; of the image where the kernel's error is meant."""
    if other != 1:
        return
    spatial = op.params["dimension_numbers"].rhs_spec[2:]
    sizes = [shape[a] for a in spatial]
    if not 1 < math.prod(sizes) <= MOST_TAPS:
        return
    for place in np.ndindex(*sizes):
        index: list[Any] = [slice(None)] * len(shape)
        for a, n in zip(spatial, place, strict=True):
            index[a] = n
        mask = np.zeros(shape)
        mask[tuple(index)] = 1.0
        where = list(place)
        yield f"the kernel's entry {where} alone: the sum over its entries is missing", mask
        yield f"the kernel without its entry {where}", 1 - mask
    for axis, size in zip(spatial, sizes, strict=True):
        if size < math.prod(sizes):
            for n in range(size):
                mask = np.zeros(shape)
                mask[tuple(n if a == axis else slice(None) for a in range(len(shape)))] = 1.0
                yield f"the kernel's row {n} along axis {axis} alone", mask
                yield f"the kernel without its row {n} along axis {axis}", 1 - mask


def _along(turn: Callable[[np.ndarray], np.ndarray], value: np.ndarray, depth: int) -> np.ndarray:
    """A rearrangement of the last axes, turn of the loop by turn of the loop."""
    if not depth:
        return turn(value)
    flat = value.reshape(-1, *value.shape[depth:])
    return np.stack([turn(v) for v in flat]).reshape(value.shape)


def _turns(op: Op, other: int, shape: tuple[int, ...]) -> Iterator[tuple[str, str, Any]]:
    axes = range(len(shape))
    if op.primitive.name == "conv_general_dilated":
        spec = op.params["dimension_numbers"]
        spatial = (spec.rhs_spec if other == 1 else spec.lhs_spec)[2:]
        what = "kernel" if other == 1 else "image"
        for count in range(1, len(spatial) + 1):
            for some in itertools.combinations(spatial, count):
                words = f"the {what} turned round along axis {list(some)}"
                yield words, "flip", lambda v, s=some: np.flip(v, s)
    for i, j in itertools.combinations(axes, 2):
        if shape[i] == shape[j] > 1:
            words = f"the other factor with axes {i} and {j} exchanged"
            yield words, "transpose", lambda v, i=i, j=j: np.swapaxes(v, i, j)
    for axis in axes:
        if shape[axis] > 1:
            words = f"the other factor reversed along axis {axis}"
            yield words, "flip", lambda v, a=axis: np.flip(v, a)
        if shape[axis] > 2:
            words = f"the other factor moved by one along axis {axis}"
            for step in (1, -1):
                yield words, "missing-rows", lambda v, a=axis, s=step: np.roll(v, s, a)
                yield words, "missing-rows", lambda v, a=axis, s=step: shift(v, s, a)


def _held(t: np.ndarray, step: int, axis: int) -> np.ndarray:
    """Moved along an axis, with the value at the end held."""
    end = np.take(t, [0] if step > 0 else [t.shape[axis] - 1], axis)
    rest = np.take(t, range(t.shape[axis] - 1) if step > 0 else range(1, t.shape[axis]), axis)
    return np.concatenate([end, rest] if step > 0 else [rest, end], axis)


def shift(t: np.ndarray, step: int, axis: int) -> np.ndarray:
    """Moved along an axis, with zeros coming in."""
    moved = np.roll(t, step, axis)
    index: list[Any] = [slice(None)] * t.ndim
    index[axis] = slice(0, step) if step > 0 else slice(step, None)
    moved[tuple(index)] = 0
    return moved


# --- elementwise products and quotients ---------------------------------------------------------------


def _elementwise(sites: Sites, op: Op, k: int, known: Values, depth: int) -> Iterator[Guess]:
    shape = known[op.outputs[0]].shape

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        return jax.lax.stop_gradient(given) * jnp.broadcast_to(inputs[k], results[0].shape)

    def value(env: Values, n: int) -> np.ndarray:
        v = op.inputs[n]
        return np.asarray(v.value, np.float64) if isinstance(v, Constant) else beside(env[v])

    def beside(v: np.ndarray) -> np.ndarray:
        """A value of every turn, as it stands beside the result of every turn."""
        missing = (1,) * (len(shape) - np.ndim(v)) if depth else ()
        return np.reshape(v, (*np.shape(v)[:depth], *missing, *np.shape(v)[depth:]))

    def slope(env: Values) -> np.ndarray:
        return _slope(op, k, value(env, 0), value(env, 1))

    def full(fn: Callable[[Values], np.ndarray]) -> Callable[[Values, Values], np.ndarray]:
        return lambda env, s: np.broadcast_to(fn(env), shape)

    slot = Instead(op, k, make, shape=shape)
    other = _value(op, 1 - k, known)
    assert other is not None
    if known[op.outputs[0]].size > 1 or depth or not isinstance(op.inputs[1 - k], Constant):
        yield Guess(slot, "factor", "left out of the backward pass", full(lambda e: np.ones(())))
        yield Guess(
            slot, "factor", "applied twice in the backward pass", full(lambda e: slope(e) * abs(slope(e)))
        )
    if op.primitive.name == "div" and k == 1:
        cause = "wrong-activation" if shape else "scale"
        yield Guess(slot, cause, "-a/b, one power of b too few", full(lambda e: slope(e) * value(e, 1)))
        yield Guess(slot, cause, "-1/b², without the numerator", full(lambda e: slope(e) / value(e, 0)))
    for axis in range(depth if not isinstance(op.inputs[1 - k], Constant) else 0):
        cause = "missing-rows" if lost(other) == "missing-rows" else "wrong-point"
        for step, which in ((1, "before"), (-1, "after")):
            for turn in (shift, _held):
                words = f"the other factor of the turn {which}"
                moved = lambda e, s=step, a=axis, f=turn: f(value(e, 1 - k), s, a)  # noqa: E731
                make_ = full(lambda e, m=moved: _with(op, k, m(e), value(e, 1)))
                yield Guess(slot, cause, words, make_)
    if not sites.is_live(op, 1 - k) and not isinstance(op.inputs[1 - k], Constant):
        if np.array_equal(other, np.round(other)) and np.ptp(other) > 1:
            for step in (1, -1):  # positions
                words = f"the other factor counted from {np.min(other) + step:g}"
                make_ = full(lambda e, s=step: _with(op, k, value(e, 1 - k) + s, value(e, 1)))
                yield Guess(slot, "wrong-point", words, make_)
        for words, cause, turn in _turns(op, 1 - k, op.in_avals[1 - k].shape):  # a mask, or positions
            make_ = full(lambda e, t=turn: _with(op, k, _along(t, value(e, 1 - k), depth), value(e, 1)))
            yield Guess(slot, cause, words, make_)
    for v, cause, words in _others(sites, op, op.in_avals[1 - k].shape, known):
        make_ = full(lambda e, v=v: _with(op, k, beside(e[v]), value(e, 1)))
        yield Guess(slot, cause, words, make_, rank=1, ways=ways(sites, op, v, words))
    for n in (0, 1) if op.primitive.name == "div" else (1 - k,):
        for what, cause, without in chains.without(sites, op.inputs[n], known, depth):
            words = f"{role(op, n)} without its own factor, {what}"
            make_ = lambda e, n=n, w=without: _slope(op, k, *(  # noqa: E731
                beside(w(e)) if m == n else value(e, m) for m in (0, 1)
            ))  # fmt: skip
            yield Guess(slot, cause, words, full(make_))


def _slope(op: Op, k: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The derivative of `a·b` or `a/b` in operand `k`."""
    if op.primitive.name == "mul":
        return np.asarray(b if k == 0 else a)
    return np.asarray(1 / b if k == 0 else -a / b**2)


def _with(op: Op, k: int, v: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The slope with `v` in the place of the factor that is not operand `k`."""
    if op.primitive.name == "mul":
        return np.asarray(v)
    return np.asarray(1 / v if k == 0 else -v / b**2)
