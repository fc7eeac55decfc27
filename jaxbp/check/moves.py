"""Operations that move entries, and sums in order, whose error is moved otherwise than it has to be.

A reshape where a transpose belongs, the permutation that sorts for its inverse, an error cut out one
place too far, a running sum run in the direction of the forward pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits import Instead
from jaxbp.check.evaluate import again, run, scan_counts
from jaxbp.check.operations import Editor, Op, is_float
from jaxbp.check.sites import Sites

MOST_AXES = 4


def moves(sites: Sites) -> Iterator[Instead]:
    """Axes filled in another order, sums run the wrong way, entries cut out elsewhere."""
    for op in sites.ops():
        if op.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from _turned_error(sites, op)
        if op.kind == "scan" and any(o in sites.live for o in op.outputs):
            words = "run from the first turn to the last, where the error comes back from the last"
            yield Instead(op, -1, _wrong_way(op), "flip", words, whole=True)
        if op.primitive.name in ("concatenate", "pad"):
            yield from _running_before(sites, op)
        if op.primitive.name == "mul":
            yield from _conjugated(sites, op)
        if op.primitive.name in MOVES and sites.is_live(op, 0):
            yield from MOVES[op.primitive.name](op)


def _running(op: Op) -> Iterator[Instead]:
    """A running sum or product, the wrong way round or without each entry's own term."""
    yield Instead(op, 0, _backwards(op), "flip", "run in the direction of the forward pass")
    words = "run without each entry's own term: off by one"
    yield Instead(op, 0, _exclusive(op), "missing-rows", words)
    words = "run over each entry's own term alone: what it does to later ones is forgotten"
    yield Instead(op, 0, _own_term(op), "missing-path", words)


def _own_term(op: Op) -> Any:
    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        x, still = inputs[0], jax.lax.stop_gradient
        return x if op.primitive.name == "cumsum" else still(results[0]) * (x / still(x))

    return make


def _conjugated(sites: Sites, op: Op) -> Iterator[Instead]:
    """A product of complex numbers, as a spectrum with a filter, with the other factor's conjugate."""
    for k in (0, 1):
        if sites.is_live(op, k) and jnp.issubdtype(op.out_avals[0].dtype, jnp.complexfloating):

            def make(inputs: list[Any], results: list[Any], env: dict, given: Any, k: int = k) -> Any:
                return inputs[k] * jnp.conj(jax.lax.stop_gradient(inputs[1 - k]))

            yield Instead(op, k, make, "flip", "the conjugate: a convolution for a correlation, or back")


def _running_before(sites: Sites, op: Op) -> Iterator[Instead]:
    """A running sum or product up to the entry before, whose error takes in the entry, or is turned.

    `T = concatenate([1, cumprod(e)[:-1]])`, as light is carried through what lies in front of a point.
    """
    for k, v in enumerate(op.inputs):
        cut = sites.producer.get(v) if isinstance(v, int) else None
        run = sites.producer.get(cut.inputs[0]) if cut is not None else None
        if cut is None or cut.primitive.name != "slice" or run is None:
            continue
        if (
            run.primitive.name in ("cumsum", "cumprod")
            and run.out_avals[0].shape == op.out_avals[0].shape
        ):
            reverse = run.params["reverse"]
            for words, back, own in (
                ("run with each entry's own term, where it ends before it: off by one", reverse, True),
                ("run in the direction of the forward pass", not reverse, False),
                (
                    "run in the direction of the forward pass, with each entry's own term",
                    not reverse,
                    True,
                ),
            ):
                cause = "missing-rows" if back == reverse else "flip"
                yield Instead(op, k, _summed(run, back, own), cause, words)


def _summed(run: Op, reverse: bool, own: bool) -> Any:
    """The value, with the derivative of another running sum or product; `own` counts the entry itself."""
    axis, product = run.params["axis"], run.primitive.name == "cumprod"
    still = jax.lax.stop_gradient

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        x = env[run.inputs[0]]
        parts = x / still(x) if product else x
        total = jax.lax.cumsum(parts, axis, reverse) - (0 if own else parts)
        return still(results[0]) * total if product else total

    return make


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
                yield Instead(op, 0, make, "missing-rows", words.format(axis))
        return
    first, last = op.params["start_indices"], op.params["limit_indices"]
    strides = op.params["strides"] or (1,) * len(first)
    for axis, size in enumerate(op.in_avals[0].shape):
        length = last[axis] - first[axis]
        for start in dict.fromkeys((first[axis] - 1, first[axis] + 1, 0, size - length)):
            if start == first[axis] or not 0 <= start <= size - length:
                continue
            begin = [start if n == axis else a for n, a in enumerate(first)]
            end = [start + length if n == axis else b for n, b in enumerate(last)]
            make = lambda x, y, env, given, a=begin, b=end: jax.lax.slice(x[0], a, b, strides)  # noqa: E731
            yield Instead(op, 0, make, "missing-rows", words.format(axis))


def _unsorted(op: Op) -> Iterator[Instead]:
    """Sorted values whose error is not put back in the order of the input, or by the wrong order."""
    axis = op.params["dimension"]

    def permuted(x: list[Any], y: list[Any], env: dict, given: Any) -> Any:
        order = jnp.argsort(jax.lax.stop_gradient(x[0]), axis)
        return jnp.take_along_axis(x[0], jnp.argsort(order, axis), axis)

    words = "moved by the permutation that sorts, where its inverse belongs"
    yield Instead(op, 0, permuted, "transpose", words)
    words = "left in sorted order"
    yield Instead(op, 0, lambda x, y, env, given: x[0], "transpose", words)


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
            yield Instead(op, 0, make, "transpose", words)


def _turned_error(sites: Sites, op: Op) -> Iterator[Instead]:
    """A product whose error is transposed (or not, where it has to be) on the way to one factor."""
    shape = op.out_avals[0].shape
    for a, b in itertools.combinations(range(len(shape)), 2):
        for k in (0, 1):
            if shape[a] == shape[b] > 1 and sites.is_live(op, k):
                words = f"with its axes {a} and {b} exchanged"
                yield Instead(op, k, _exchanged(op, k, a, b), "transpose", words)


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
        yield Instead(op, 0, make, "transpose", "reshaped where it has to be transposed")
        return
    before = op.in_avals[0].shape
    for a, b in itertools.combinations([a for a, n in enumerate(before) if n > 1][: MOST_AXES + 1], 2):
        words = f"with axes {a} and {b} of what is reshaped exchanged"
        turned = lambda x, y, env, given, a=a, b=b: jnp.reshape(  # noqa: E731
            jnp.reshape(jnp.swapaxes(x[0], a, b), x[0].shape), shape
        )
        yield Instead(op, 0, turned, "transpose", words)
    long = [a for a, n in enumerate(shape) if n > 1]
    orders = itertools.permutations(long) if len(long) <= MOST_AXES else _neighbours(long)
    for order in orders:
        axes = list(range(len(shape)))
        for a, b in zip(long, order, strict=True):
            axes[a] = b
        if axes != sorted(axes):
            words = f"filled with its axes in the order {axes}"
            yield Instead(op, 0, _in_order(shape, axes), "transpose", words)


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


def _backwards(op: Op) -> Any:
    """A running sum or product whose error is summed up in the same direction."""
    axis, reverse = op.params["axis"], not op.params["reverse"]

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        if op.primitive.name == "cumsum":
            return jax.lax.cumsum(inputs[0], axis, reverse)
        parts = inputs[0] / jax.lax.stop_gradient(inputs[0])
        return jax.lax.stop_gradient(results[0]) * jax.lax.cumsum(parts, axis, reverse)

    return make


def _exclusive(op: Op) -> Any:
    """A running sum or product of which every entry's own term is left out."""
    axis, reverse = op.params["axis"], op.params["reverse"]

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        x = inputs[0]
        if op.primitive.name == "cumsum":
            return jax.lax.cumsum(x, axis, reverse) - x
        parts = x / jax.lax.stop_gradient(x)
        return jax.lax.stop_gradient(results[0]) * (jax.lax.cumsum(parts, axis, reverse) - parts)

    return make


def _wrong_way(op: Op) -> Any:
    """The loop with its values as they are, and its state handed on in the other direction."""
    consts, carry = scan_counts(op.params)
    still = jax.lax.stop_gradient
    order = {"length": op.params["length"]}

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> list[Any]:
        inputs = [jnp.asarray(x) for x in inputs]
        fixed, init, xs = inputs[:consts], inputs[consts : consts + carry], inputs[consts + carry :]

        def forward(state: list[Any], x: list[Any]) -> Any:
            return run(op.bodies[0], [*fixed, *state, *x], Editor(), True)[:carry], state

        def pinned(state: list[Any], x: Any) -> Any:
            values = [v + (s - still(s)) if is_float(v) else v for v, s in zip(x[0], state, strict=True)]
            outs = run(op.bodies[0], [*fixed, *values, *x[1]], Editor(), True)
            return outs[:carry], outs[carry:]

        _, kept = jax.lax.scan(forward, init, xs, reverse=op.params["reverse"], **order)
        state, ys = jax.lax.scan(
            pinned, init, (still(kept), xs), reverse=not op.params["reverse"], **order
        )
        return [*state, *ys]

    return make


MOVES = {
    "reshape": _refilled,
    "transpose": _refilled,
    "cumsum": _running,
    "cumprod": _running,
    "pad": _cropped,
    "slice": _cropped,
    "sort": _unsorted,
    "reduce_sum": _spread_in_another_order,
}
