"""Derivatives that forget how entries are coupled, and masks, maxima and orders of axes that they ignore.

A softmax or a norm divides by a sum over all entries. Who differentiates it "elementwise" follows every
entry to its own output only, and drops the off-diagonal of the Jacobian.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits import Instead
from jaxbp.check.evaluate import again, run, scan_counts
from jaxbp.check.operations import Constant, Editor, Op, Scope, is_float, widen
from jaxbp.check.sites import Sites, is_elementwise
from jaxbp.check.together import Together

LONGEST = 8
MOST_AXES = 4
MOST_HALVES = 60
MOST_LOOKUPS = 512
MOST_PAIRS = 24


def masks_and_orders(sites: Sites) -> list[Instead]:
    """Masks left out, maxima whose error goes everywhere, axes filled in another order."""
    found: list[Instead] = []
    for op in sites.ops():
        if op.primitive.name in ("reshape", "transpose") and sites.is_live(op, 0):
            found += _refilled(op)
        if op.primitive.name in ("cumsum", "cumprod") and sites.is_live(op, 0):
            found.append(
                Instead(op, 0, _backwards(op), "flip", "run in the direction of the forward pass")
            )
            words = "run without each entry's own term: off by one"
            found.append(Instead(op, 0, _exclusive(op), "missing-rows", words))
        if op.primitive.name == "stop_gradient" and sites.is_live(op, 0):
            words = "let through, where the function stops it"
            found.append(Instead(op, 0, lambda x, y, env, given: x[0], "extra-path", words))
        if op.primitive.name == "gather" and sites.is_live(op, 0):
            found += _overwritten(op)
        if op.primitive.name in ("gather", "scatter-add"):
            found += _other_indices(sites, op)
        if op.primitive.name in ("pad", "slice") and sites.is_live(op, 0):
            found += _cropped(op)
        if op.primitive.name == "sort" and sites.is_live(op, 0):
            found += _unsorted(op)
        if op.primitive.name == "reduce_sum" and sites.is_live(op, 0):
            found += _spread_in_another_order(op)
        if op.kind == "scan" and any(o in sites.live for o in op.outputs):
            words = "run from the first turn to the last, where the error comes back from the last"
            found.append(Instead(op, -1, _wrong_way(op), "flip", words, whole=True))
        if op.primitive.name == "select_n":
            for k in range(1, len(op.inputs)):
                if sites.is_live(op, k) and op.in_avals[k].shape == op.out_avals[0].shape:
                    words = "left out of the backward pass"
                    found.append(Instead(op, k, lambda x, y, env, given, k=k: x[k], "mask", words))
        if op.primitive.name in ("max", "min") and all(sites.is_live(op, k) for k in (0, 1)):
            words = "not asked: the error goes to both operands"
            found.append(Instead(op, -1, lambda x, y, env, given: x[0] + x[1], "mask", words))
        if op.primitive.name in ("dot_general", "conv_general_dilated"):
            found += _turned_error(sites, op)
        if op.primitive.name in ("reduce_max", "reduce_min") and sites.is_live(op, 0):
            found += _reductions(op)
        if op.primitive.name in ("reduce_window_max", "reduce_window_min") and sites.is_live(op, 0):
            found += _windows(op)
    return found


def _reductions(op: Op) -> Iterator[Instead]:
    axes = tuple(op.params["axes"])
    for words, combine in (("of the sum", jnp.sum), ("of the mean", jnp.mean)):
        make = lambda x, y, env, given, f=combine: f(x[0], axis=axes)  # noqa: E731
        yield Instead(op, 0, make, "wrong-activation", words)


def _windows(op: Op) -> Iterator[Instead]:
    """A pooled maximum whose error goes to the whole window."""
    p = op.params
    window = (p["window_dimensions"], p["window_strides"], p["padding"], p["base_dilation"])
    size = prod(p["window_dimensions"])

    def total(x: Any) -> Any:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, *window, p["window_dilation"])

    for words, share in (("of the sum over the window", 1.0), ("of the mean over the window", 1 / size)):
        make = lambda x, y, env, given, k=share: k * total(x[0])  # noqa: E731
        yield Instead(op, 0, make, "wrong-activation", words)


def _other_indices(sites: Sites, op: Op) -> Iterator[Instead]:
    """Errors looked up, or added up, at the places of another look-up."""
    k = 2 if op.primitive.name == "scatter-add" else 0
    shape = op.in_avals[1].shape
    others = [
        one.inputs[1]
        for one in sites.home[id(op)].ops
        if one.primitive.name in ("gather", "scatter-add")
        and one.in_avals[1].shape == shape
        and isinstance(one.inputs[1], int)
        and one.inputs[1] != op.inputs[1]
    ]
    for v in list(dict.fromkeys(others))[:MOST_AXES]:

        def make(x: Any, y: Any, env: dict, given: Any, v: int = v) -> Any:
            if v not in env:
                return y[0]
            return again(op, [x[0], env[v], *x[2:]])

        words = "taken at the places of another look-up"
        if sites.is_live(op, k):
            yield Instead(op, k, make, "wrong-point", words)


def _overwritten(op: Op) -> Iterator[Instead]:
    """What is looked up more than once, with one error in the place of the sum of all."""
    shape = op.in_avals[1].shape
    count = prod(shape[:-1])
    if not 1 < count <= MOST_LOOKUPS:
        return
    across = op.params["dimension_numbers"].offset_dims
    batch = [n for a, n in enumerate(op.out_avals[0].shape) if a not in across]
    if prod(batch) != count:
        return
    spread = [1 if a in across else n for a, n in enumerate(op.out_avals[0].shape)]
    for words, later in (("last", True), ("first", False)):

        def make(x: Any, y: Any, env: dict, given: Any, later: bool = later) -> Any:
            ids = jnp.asarray(x[1]).reshape(count, -1)
            same = jnp.all(ids[:, None] == ids[None], -1)
            other = jnp.triu(same, 1) if later else jnp.tril(same, -1)
            alone = ~jnp.any(other, 1)
            return again(op, x) * alone.reshape(spread)

        said = f"that of the {words} of several that look up the same entry: overwritten, not added up"
        yield Instead(op, 0, make, "missing-sum", said)


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
            words = f"spread as if its axes {a} and {b} were exchanged (repeated where it has to be tiled)"
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


def own_entries(sites: Sites) -> list[Instead]:
    """Sums that reach every entry (softmax, norms), followed from each output's own entry only."""
    found = []
    for scope in sites.scopes:
        sums = {
            op.outputs[0]: op
            for op in scope.ops
            if op.primitive.name in ("reduce_sum", "reduce_prod") and sites.is_live(op, 0)
        }
        for op in scope.ops:
            for k, v in enumerate(op.inputs):
                if not sites.is_live(op, k) or not is_elementwise(op):
                    continue
                chain, start = _back_to(sites, v, sums)
                if start is not None and sums[start].in_avals[0].shape == op.out_avals[0].shape:
                    found.append(_own_entry(op, k, sums[start], chain))
    return found


def exchanged(sites: Sites) -> list[Together]:
    """The errors of two values of the same shape in each other's place: q and k, two gates, two halves.

    Where a loop is unrolled, those of all its turns at once.
    """
    found: list[Together] = []
    for scope in sites.scopes:
        for first, second in _pairs(sites, scope):
            parts = [
                Instead(op, k, _with_error_of(sites, op, k, other), "swapped", "")
                for one, other in zip((*first, *second), (*second, *first), strict=True)
                for op in scope.ops
                for k, v in enumerate(op.inputs)
                if v == one and len(op.outputs) == 1
            ]
            if parts and len(found) < MOST_PAIRS:
                text = f"{sites.describe(first[0])} and {sites.describe(second[0])}"
                found.append(Together(parts, text=text))
    return found


def _with_error_of(sites: Sites, op: Op, k: int, other: int) -> Any:
    """The operation with its operand `k` in value, and the other value in what is differentiated."""
    still = jax.lax.stop_gradient

    def value(env: dict, v: Any, depth: int = LONGEST) -> Any:
        """A value, computed ahead of its time where it does not exist yet."""
        if isinstance(v, Constant):
            return widen(v.value)
        if v in env or depth == 0:
            return env[v]
        maker = sites.producer[v]
        made = again(maker, [value(env, u, depth - 1) for u in maker.inputs])
        return made if maker.outputs[0] == v else env[v]

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = [still(v) for v in inputs]
        try:
            moving = value(env, other)
        except KeyError:
            return results[0]
        operands[k] = still(inputs[k]) + moving - still(moving)
        return again(op, operands)

    return make


def _pairs(sites: Sites, scope: Scope) -> Iterator[tuple[list[int], list[int]]]:
    """Two lists of values that somebody may have exchanged; as long as a loop in Python has turns."""
    kinds: dict[Any, list[int]] = {}
    lines: dict[Any, list[int]] = {}
    for op in scope.ops:
        name = op.primitive.name
        for n, o in enumerate(op.outputs):
            if o not in sites.live or not sites.shape[o]:
                continue
            place = (sites.shape[o], op.place.file, op.place.line, name, n)
            if name in ("slice", "split", "dot_general"):
                weights = tuple(v for v in op.inputs if v in scope.inputs) if name == "dot_general" else ()
                start = str(op.params.get("start_indices"))
                kinds.setdefault((sites.shape[o], (*place, start, weights)), []).append(o)
            elif name in ("add", "mul", "sub", "reshape", "transpose", "squeeze"):
                lines.setdefault(place, []).append(o)
    for (first, a), (second, b) in itertools.combinations(kinds.items(), 2):
        if first[0] == second[0] and len(a) == len(b):
            yield a, b
    for values in lines.values():
        for m in (2, 3, 4):
            if len(values) % m == 0:
                yield from itertools.combinations([values[n::m] for n in range(m)], 2)


def half_handed_on(sites: Sites) -> Iterator[Instead]:
    """A value with several uses, of which one use's error goes on to one operand alone.

    Errors from all uses have to be added up before they go on; who goes on with one of them, or with the
    sum as it was before, has the right cotangent on one way and the wrong one on another.
    """
    for scope in sites.scopes:
        uses = [(op, k, v) for op in scope.ops for k, v in enumerate(op.inputs) if sites.is_live(op, k)]
        counts = Counter(v for _, _, v in uses)
        counts.update(v for v in scope.outputs if isinstance(v, int))
        made = 0
        for op, k, v in uses[::-1]:
            maker = sites.producer.get(v)
            if maker is None or counts[v] < 2 or maker.kind != "plain" or len(maker.outputs) != 1:
                continue
            live = [n for n in range(len(maker.inputs)) if sites.is_live(maker, n)]
            if len(live) < 2 or op.kind != "plain" or len(op.outputs) != 1 or made >= MOST_HALVES:
                continue
            for n in live:
                made += 1
                words = f"not handed on to operand {n} of `{maker.name}`, from which that value comes"
                yield Instead(op, k, _without(op, k, [(maker, n)]), "half", words)
                inner = sites.producer.get(maker.inputs[n])
                if inner is None or inner.kind != "plain" or counts[maker.inputs[n]] > 1:
                    continue
                deeper = [m for m in range(len(inner.inputs)) if sites.is_live(inner, m)]
                for m in deeper if len(deeper) > 1 and len(inner.outputs) == 1 else ():
                    words = f"not handed on to operand {m} of `{inner.name}`, from which that value comes"
                    yield Instead(op, k, _without(op, k, [(maker, n), (inner, m)]), "half", words)


def _without(op: Op, k: int, chain: list[tuple[Op, int]]) -> Any:
    """The operation, with operand `k` depending on all that it is made of but the end of the chain."""
    still = jax.lax.stop_gradient

    def rebuilt(env: dict, at: int) -> Any:
        maker, n = chain[at]
        parts = [widen(v.value) if isinstance(v, Constant) else env[v] for v in maker.inputs]
        last = at + 1 == len(chain)
        parts[n] = still(parts[n]) if last else rebuilt(env, at + 1)
        return again(maker, parts)

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = [still(x) for x in inputs]
        operands[k] = rebuilt(env, 0)
        return again(op, operands)

    return make


def _back_to(sites: Sites, v: Any, sums: dict[int, Op]) -> tuple[list[Op], int | None]:
    """The chain of one-operand steps from a sum to the value `v`."""
    chain: list[Op] = []
    while isinstance(v, int) and v not in sums:
        op = sites.producer.get(v)
        if op is None or len(chain) > LONGEST:
            return [], None
        live = {u for k, u in enumerate(op.inputs) if sites.is_live(op, k)}
        if len(live) != 1 or not (
            is_elementwise(op) or op.primitive.name in ("broadcast_in_dim", "reshape")
        ):
            return [], None
        chain.append(op)
        v = live.pop()
    return chain[::-1], v if isinstance(v, int) else None


def _own_entry(op: Op, k: int, total: Op, chain: list[Op]) -> Instead:
    """The operation, with the sum behind operand `k` depending, at every entry, on that entry alone."""
    still = jax.lax.stop_gradient

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        try:
            return alone(inputs, env)
        except (TypeError, ValueError):  # values that do not line up with the entries: no such mistake
            return results[0]

    def alone(inputs: list[Any], env: dict) -> Any:
        entries = env[total.inputs[0]]
        axes = tuple(total.params["axes"])
        summed = jnp.broadcast_to(jnp.expand_dims(still(env[total.outputs[0]]), axes), entries.shape)
        own = still(summed) + entries - still(entries)
        if total.primitive.name == "reduce_prod":
            own = still(summed) + still(summed / entries) * (entries - still(entries))
        live = {total.outputs[0]: own}
        for step in chain:
            live[step.outputs[0]] = _step(step, live, env, own)
        operands = [still(x) for x in inputs]
        operands[k] = live[op.inputs[k]]
        return again(op, [_spread_out(x, own) for x in operands])

    return Instead(op, k, make, "missing-path", "from each output's own entry alone")


def _step(step: Op, live: dict[int, Any], env: dict, own: Any) -> Any:
    if not is_elementwise(step):
        return next(live[v] for v in step.inputs if v in live)
    operands = [
        live[v]
        if v in live
        else _spread_out(
            widen(v.value) if isinstance(v, Constant) else jax.lax.stop_gradient(env[v]), own
        )
        for v in step.inputs
    ]
    return again(step, operands)


def _spread_out(x: Any, like: Any) -> Any:
    """A constant in the shape of the entries: scalars as they are, sums along their lost axes."""
    x = jnp.asarray(x)
    if x.shape == like.shape:
        return x
    if x.ndim == like.ndim:
        return jnp.broadcast_to(x, like.shape)
    return jnp.broadcast_to(x.reshape((*x.shape, *(1,) * (like.ndim - x.ndim))), like.shape)
