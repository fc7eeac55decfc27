"""Slips of several operations at once: look-ups, values computed again, one use of an error, a line."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from jaxbp.check.backward.edit import (
    LARGEST,
    Edit,
    Values,
    changed_at,
    changed_with,
    fixed,
    named,
    rearranged,
    spreads,
)  # fmt: skip
from jaxbp.check.backward.in_numpy import apply
from jaxbp.check.backward.program import Change, Changes, Env
from jaxbp.check.operations import Constant, Op, is_float

NEAR = 12  # operations between the two places of a factor that is moved
LOOKED_UP = ("gather", "scatter-add", "scatter_add", "dynamic_slice", "dynamic_update_slice", "scatter")


def _indices(values: Values, made: list[Edit]) -> Iterator[Edit]:
    """Look-ups by the same indices, with those in another order: the groups of a norm or of heads."""
    groups: dict[Any, list[tuple[Op, int]]] = {}
    for op in values.backward.scope.ops:
        for k, v in enumerate(op.inputs) if op.primitive.name in LOOKED_UP else ():
            value = np.asarray(v.value if isinstance(v, Constant) else values.env[v])
            if value.dtype.kind in "iu" and value.size > 1:
                groups.setdefault((value.shape, value.tobytes()), []).append((op, k))
    for (shape, _), places in groups.items():
        first = places[0][0]
        for cause, words, turn in rearranged(shape):
            cause = "wrong-point" if cause in ("missing-rows", "flip", "transpose") else cause
            make = lambda w, p=places, t=turn: {id(op): changed_at(k, t) for op, k in p}  # noqa: E731
            yield Edit(first, make, cause, f"that of a look-up whose index {words}", 4)


def _recomputed(values: Values, made: list[Edit]) -> Iterator[Edit]:
    """A value of the forward pass that is another one in the backward pass: turned."""
    backward = values.backward
    for op in backward.scope.ops:
        v = op.outputs[0] if len(op.outputs) == 1 else None
        if v is None or v not in values.env or any(backward.linear[id(op)]) or op.bodies:
            continue
        value = np.asarray(values.env[v])
        if value.dtype.kind != "f" or value.size < 2 or value.size > LARGEST or not isinstance(v, int):
            continue
        for cause, words, turn in rearranged(value.shape):
            cause = "wrong-point" if cause == "missing-rows" else cause
            change = lambda run, x, env, t=turn: [t(r) for r in run(x)]  # noqa: E731
            yield fixed(op, change, cause, f"taken with {{{v}}}, which {words}", 5, ("taken", words))
        for k, u in enumerate(op.inputs):
            if values.shape(op, k) == value.shape and is_float(op.in_avals[k]):
                cause = (
                    "missing-rows" if op.primitive.name in ("select_n", "max", "min") else "wrong-point"
                )
                change = lambda run, x, env, k=k: [x[k]]  # noqa: E731
                yield fixed(op, change, cause, f"taken with {named(u)} for {{{v}}}", 6, ("for", k))


def _moved(values: Values, made: list[Edit]) -> Iterator[Edit]:
    """A factor applied at another place: before a rotation, say, where it belongs after it."""
    backward = values.backward
    edges = [
        (op, k)
        for op in backward.scope.ops
        for k, error in enumerate(backward.linear[id(op)])
        if error and not op.bodies
    ]
    for op in backward.scope.ops:
        flags = backward.linear[id(op)]
        if op.primitive.name not in ("mul", "div") or sum(flags) != 1 or op.inputs[0] == op.inputs[1]:
            continue
        live = flags.index(True)
        factor = op.inputs[1 - live]
        shape = values.shape(op, 1 - live)
        if int(np.prod(shape)) < 2 or (op.primitive.name == "div" and live == 1):
            continue
        for other, k in edges:
            near = abs(backward.order[id(other)] - backward.order[id(op)]) <= NEAR
            if other is not op and near and spreads(shape, values.shape(other, k)):
                yield _move(op, live, factor, other, k)


def _move(op: Op, live: int, factor: Any, other: Op, k: int) -> Edit:
    by = np.divide if op.primitive.name == "div" else np.multiply
    value = lambda env: factor.value if isinstance(factor, Constant) else env[factor]  # noqa: E731
    skip: Change = lambda run, x, env: [np.broadcast_to(x[live], np.broadcast_shapes(*map(np.shape, x)))]  # noqa: E731
    put = changed_with(k, lambda u, env: by(u, value(env)))
    words = f"multiplied by {named(factor)} at another place than that"
    return Edit(op, lambda w: {id(op): skip, id(other): put}, "wrong-point", words, 5)


def _in_one_use(values: Values, made: list[Edit]) -> Iterator[Edit]:
    """A slip on the way to an error that is used several times, in one of its uses alone."""
    by_op: dict[int, list[Edit]] = {}
    for edit in made:
        if edit.rank <= 2 and edit.places == 1:
            by_op.setdefault(id(edit.op), []).append(edit)
    for v, users in values.uses.items():
        if v not in values.errors or v not in values.env or len(users) < 2:
            continue
        for chain in _chains(values, v):
            for edit, (user, k) in itertools.product(by_op.get(id(chain[-1]), ()), users):
                if not user.bodies and not (len(chain) == 1 and edit.size == 1):
                    yield _limited(edit, chain, user, k, v)


def _chains(values: Values, v: int, steps: int = 4) -> Iterator[list[Op]]:
    """The operations that make a value, from the last one back, each with all those after it."""
    chain: list[Op] = []
    backward = values.backward
    for _ in range(steps):
        op = backward.producer.get(v)
        if op is None or op.bodies or len(op.outputs) != 1:
            return
        chain.append(op)
        yield list(chain)
        live = [u for u, f in zip(op.inputs, backward.linear[id(op)], strict=True) if f]
        if len(live) != 1:
            return
        v = live[0]


def _limited(edit: Edit, chain: list[Op], user: Op, k: int, v: int) -> Edit:
    def make(w: Any) -> Changes:
        inner = edit.make(w)

        def change(run: Any, x: list[Any], env: Env) -> list[Any]:
            here: Env = {}
            for op in reversed(chain):
                operands = [
                    u.value if isinstance(u, Constant) else here.get(u, env.get(u)) for u in op.inputs
                ]
                one = inner.get(id(op))
                plain = lambda y, op=op: apply(op, y)  # noqa: E731
                here[op.outputs[0]] = (one(plain, operands, env) if one else plain(operands))[0]
            return run([here[v] if n == k else u for n, u in enumerate(x)])

        return {id(user): change}

    words = f"{edit.words}, where it goes on to the one use and not to the others"
    return Edit(edit.op, make, edit.cause, words, edit.rank + 4, edit.size, edit.axis)


def _places(values: Values, made: list[Edit]) -> Iterator[Edit]:
    """The same slip in every place of a line, or all but one: in the turns of a loop in Python, say."""
    groups: dict[Any, list[Edit]] = {}
    for edit in made:
        if edit.key is not None and edit.size <= 1:
            groups.setdefault((values.line(edit.op), edit.key), []).append(edit)
    for group in groups.values():
        by_op = {id(edit.op): edit for edit in group}
        if len(by_op) < 2 or len(by_op) > MOST_PLACES:
            continue
        every = list(by_op.values())
        parts = [(every, f", in the {len(every)} places of that line")]
        if len(every) > 2:
            parts += [(every[1:], ", in all places of that line but the first on the way back")]
            parts += [(every[:-1], ", in all places of that line but the last on the way back")]
        for some, words in parts:
            make = lambda w, some=some: {key: c for e in some for key, c in e.make(w).items()}  # noqa: E731
            first = some[0]
            yield replace(first, make=make, words=first.words + words, places=len(some))


MOST_PLACES = 64


def _at_another_value(values: Values, made: list[Edit]) -> Iterator[Edit]:
    """The derivative of some operations, those of one line, at another value than theirs."""
    backward = values.backward
    forward = [
        op
        for op in backward.scope.ops
        if not any(backward.linear[id(op)]) and op.origin is not None and not op.bodies
    ]
    for _, line in itertools.groupby(forward, lambda op: values.line(op)[:3]):
        ops = list(line)
        results = {v for op in ops for v in op.outputs}
        used = [
            (op, k)
            for v in results
            for op, k in values.uses.get(v, ())
            if any(backward.linear[id(op)]) and not backward.linear[id(op)][k] and not op.bodies
        ]
        inputs = dict.fromkeys(
            v for op in ops for v in op.inputs if isinstance(v, int) and v not in results
        )
        seen: Counter[Any] = Counter()
        for v in inputs if used else ():
            for w in values.near(v):
                changes = _substituted(values, ops, used, v, w)
                if changes:
                    op = ops[-1]
                    words = f"taken at {{{w}}} in the place of {{{v}}}"
                    seen[values.line_of(v), values.line_of(w)] += 1
                    key = values.line_of(v), values.line_of(w), seen[values.line_of(v), values.line_of(w)]
                    yield Edit(op, lambda _, c=changes: c, "wrong-point", words, 5, key=key)


def _substituted(values: Values, ops: list[Op], used: list[Any], v: int, w: int) -> Changes:
    """Coefficients of `used` computed by `ops` with `w` for `v`."""
    reached = {v}
    for op in ops:
        if any(u in reached for u in op.inputs if isinstance(u, int)):
            reached |= set(op.outputs)

    def computed(env: Env, wanted: int) -> Any:
        here: Env = {v: env[w]}
        for op in ops:
            if reached & set(op.outputs):
                operands = [
                    u.value if isinstance(u, Constant) else here.get(u, env.get(u)) for u in op.inputs
                ]
                here.update(zip(op.outputs, apply(op, operands), strict=True))
            if wanted in here:
                return here[wanted]
        return env[wanted]

    found: dict[int, dict[int, int]] = {}
    for op, k in used:
        if op.inputs[k] in reached:
            found.setdefault(id(op), {})[k] = op.inputs[k]

    def change(which: dict[int, int]) -> Change:
        return lambda run, x, env: run(
            [computed(env, which[n]) if n in which else u for n, u in enumerate(x)]
        )

    return {key: change(which) for key, which in found.items()}


FIRST = (_indices, _recomputed, _moved, _at_another_value)
WHOLE = (_places, _in_one_use)
