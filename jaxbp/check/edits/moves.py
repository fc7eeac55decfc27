"""Operations that move or spread entries, whose error is moved otherwise than it has to be.

A reshape where a transpose belongs, the permutation that sorts for its inverse, an error cut out one
place too far, or summed over another axis than the one along which the value was spread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.delays import delays
from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.running import running, running_before, wrong_way
from jaxbp.check.edits.sites import Sites
from jaxbp.check.edits.windows import taps
from jaxbp.check.evaluate import again
from jaxbp.check.operations import Op

MOST_AXES = 4


def moves(sites: Sites) -> Iterator[Instead]:
    """Axes filled in another order, sums run the wrong way, entries cut out elsewhere."""
    for op in sites.ops():
        if op.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from _turned_error(sites, op)
            yield from taps(op)
        if op.kind == "scan" and any(o in sites.live for o in op.outputs):
            words = "run from the first turn to the last, where the error comes back from the last"
            yield Instead(op, -1, wrong_way(op), "flip", words, whole=True, about="walk")
        if op.primitive.name in ("concatenate", "pad"):
            yield from running_before(sites, op)
            yield from delays(sites, op)
        if op.primitive.name == "mul":
            yield from _conjugated(sites, op)
        if op.primitive.name in ("mul", "div", "add", "sub"):
            yield from _spread_along_another(sites, op)
        if op.primitive.name in MOVES and sites.is_live(op, 0):
            yield from MOVES[op.primitive.name](op)


def _conjugated(sites: Sites, op: Op) -> Iterator[Instead]:
    """A product of complex numbers, as a spectrum with a filter, with the other factor's conjugate."""
    for k in (0, 1):
        if sites.is_live(op, k) and jnp.issubdtype(op.out_avals[0].dtype, jnp.complexfloating):

            def make(inputs: list[Any], results: list[Any], env: dict, given: Any, k: int = k) -> Any:
                return inputs[k] * jnp.conj(jax.lax.stop_gradient(inputs[1 - k]))

            yield Instead(op, k, make, "flip", "the conjugate: a convolution for a correlation, or back")


def _cropped(op: Op) -> Iterator[Instead]:
    """What is padded or cut out, with the error cut out at another place along one axis."""
    words = "cut out at another place along axis {}: an off-by-one"
    if op.primitive.name == "pad":
        for axis, (low, high, inner) in enumerate(op.params["padding_config"]):
            if inner == 0 and low != high and min(low, high) >= 0:
                config = [(b, a, c) if n == axis else (a, b, c) for n, (a, b, c) in enumerate(
                    op.params["padding_config"]
                )]  # fmt: skip
                make = lambda x, y, env, given, c=config: jax.lax.pad(  # noqa: E731
                    x[0], jnp.zeros((), x[0].dtype), c
                )
                yield Instead(op, 0, make, "missing-rows", words.format(axis), about="error")
        return
    first, last = op.params["start_indices"], op.params["limit_indices"]
    strides = op.params["strides"] or (1,) * len(first)
    if any(s > 1 for s in strides):
        ends = [a + n for a, n in zip(first, op.out_avals[0].shape, strict=True)]
        close = lambda x, y, env, given: jax.lax.slice(x[0], first, ends)  # noqa: E731
        yield Instead(op, 0, close, "missing-rows", "put back with a stride of 1", about="error")
    for axis, size in enumerate(op.in_avals[0].shape):
        length = last[axis] - first[axis]
        for start in dict.fromkeys((first[axis] - 1, first[axis] + 1, 0, size - length)):
            if start == first[axis] or not 0 <= start <= size - length:
                continue
            begin = [start if n == axis else a for n, a in enumerate(first)]
            end = [start + length if n == axis else b for n, b in enumerate(last)]
            make = lambda x, y, env, given, a=begin, b=end: jax.lax.slice(x[0], a, b, strides)  # noqa: E731
            yield Instead(op, 0, make, "missing-rows", words.format(axis), about="error")


def _unsorted(op: Op) -> Iterator[Instead]:
    """Sorted values whose error is not put back in the order of the input, or by the wrong order."""
    axis = op.params["dimension"]

    def permuted(x: list[Any], y: list[Any], env: dict, given: Any) -> Any:
        order = jnp.argsort(jax.lax.stop_gradient(x[0]), axis)
        return jnp.take_along_axis(x[0], jnp.argsort(order, axis), axis)

    words = "moved by the permutation that sorts, where its inverse belongs"
    yield Instead(op, 0, permuted, "transpose", words, about="error")
    words = "left in sorted order"
    yield Instead(op, 0, lambda x, y, env, given: x[0], "transpose", words, about="error")


def _spread_in_another_order(op: Op) -> Iterator[Instead]:
    """The error of a sum, spread over the summed entries with two axes in each other's place."""
    shape = op.in_avals[0].shape
    axes = tuple(op.params["axes"])
    for a, b in itertools.combinations(range(len(shape)), 2):
        if (a in axes) != (b in axes) and shape[a] > 1 and shape[b] > 1:
            moved = list(shape)
            moved[a], moved[b] = moved[b], moved[a]
            words = (
                f"spread as if its axes {a} and {b} were exchanged (repeated where it has to be tiled)"
            )
            make = lambda x, y, env, given, m=moved, a=a, b=b: jnp.sum(  # noqa: E731
                jnp.reshape(jnp.swapaxes(jnp.reshape(x[0], m), a, b), shape), axis=axes
            )
            yield Instead(op, 0, make, "transpose", words, about="error")


def _turned_error(sites: Sites, op: Op) -> Iterator[Instead]:
    """A product whose error is transposed (or not, where it has to be) on the way to one factor."""
    shape = op.out_avals[0].shape
    for a, b in itertools.combinations(range(len(shape)), 2):
        for k in (0, 1):
            if shape[a] == shape[b] > 1 and sites.is_live(op, k):
                words = f"taken with its axes {a} and {b} exchanged"
                yield Instead(op, k, _exchanged(op, k, a, b), "transpose", words, about="error")


def _exchanged(op: Op, k: int, a: int, b: int) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = [x if n == k else jax.lax.stop_gradient(x) for n, x in enumerate(inputs)]
        return jnp.swapaxes(again(op, operands), a, b)

    return make


def _refilled(op: Op) -> Iterator[Instead]:
    """The error reshaped where it has to be transposed, or transposed before it is reshaped."""
    shape = op.out_avals[0].shape
    if op.primitive.name == "transpose":
        make = lambda x, y, env, given: jnp.reshape(x[0], shape)  # noqa: E731
        words = "taken reshaped where it has to be transposed"
        yield Instead(op, 0, make, "transpose", words, about="error")
        return
    before = op.in_avals[0].shape
    for a, b in itertools.combinations([a for a, n in enumerate(before) if n > 1][: MOST_AXES + 1], 2):
        words = f"taken with axes {a} and {b} of what is reshaped exchanged"
        turned = lambda x, y, env, given, a=a, b=b: jnp.reshape(  # noqa: E731
            jnp.reshape(jnp.swapaxes(x[0], a, b), x[0].shape), shape
        )
        yield Instead(op, 0, turned, "transpose", words, about="error")
    long = [a for a, n in enumerate(shape) if n > 1]
    orders = itertools.permutations(long) if len(long) <= MOST_AXES else _neighbours(long)
    for order in orders:
        axes = list(range(len(shape)))
        for a, b in zip(long, order, strict=True):
            axes[a] = b
        if axes != sorted(axes):
            words = f"taken filled with its axes in the order {axes}"
            yield Instead(op, 0, _in_order(shape, axes), "transpose", words, about="error")


def _neighbours(axes: list[int]) -> Iterator[list[int]]:
    """Orders in which some neighbouring axes are exchanged."""
    pairs = list(itertools.pairwise(range(len(axes))))[: 2 * MOST_AXES]
    for count in (1, 2):
        for some in itertools.combinations(pairs, count):
            if len({a for pair in some for a in pair}) == 2 * count:
                order = list(axes)
                for a, b in some:
                    order[a], order[b] = order[b], order[a]
                yield order


def _in_order(shape: tuple[int, ...], axes: list[int]) -> Any:
    back = [axes.index(a) for a in range(len(axes))]
    moved = [shape[a] for a in axes]
    return lambda x, y, env, given: jnp.transpose(jnp.reshape(x[0], moved), back)


def _summed_along_another(op: Op) -> Iterator[Instead]:
    """A value spread along an axis, whose error is summed over another one of the same size."""
    shape, kept = op.out_avals[0].shape, op.params["broadcast_dimensions"]
    own = [a for a, n in zip(kept, op.in_avals[0].shape, strict=True) if n > 1]
    for a in own:
        for b in range(len(shape)):
            if b not in own and shape[a] == shape[b]:
                words = f"summed over axis {a}, where it was spread along axis {b}"
                make = lambda x, y, env, given, a=a, b=b: jnp.swapaxes(  # noqa: E731
                    again(op, x), a, b
                )
                yield Instead(op, 0, make, "transpose", words, about="error")


def _spread_along_another(sites: Sites, op: Op) -> Iterator[Instead]:
    """The same where an operand is spread by the operation itself."""
    shape = op.out_avals[0].shape
    for k, aval in enumerate(op.in_avals):
        if not sites.is_live(op, k) or len(aval.shape) != len(shape) or aval.shape == shape:
            continue
        for a, b in itertools.permutations(range(len(shape)), 2):
            if aval.shape[a] == shape[a] == shape[b] > 1 == aval.shape[b]:
                words = f"summed over axis {a}, where it was spread along axis {b}"
                yield Instead(op, k, _operand_turned(op, k, a, b), "transpose", words, about="error")


def _operand_turned(op: Op, k: int, a: int, b: int) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = [jax.lax.stop_gradient(x) for x in inputs]
        operands[k] = jnp.swapaxes(inputs[k], a, b)
        return again(op, operands)

    return make


MOVES = {
    "broadcast_in_dim": _summed_along_another,
    "reshape": _refilled,
    "transpose": _refilled,
    "cumsum": running,
    "cumprod": running,
    "cumlogsumexp": running,
    "pad": _cropped,
    "slice": _cropped,
    "sort": _unsorted,
    "reduce_sum": _spread_in_another_order,
}
