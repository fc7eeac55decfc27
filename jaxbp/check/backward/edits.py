"""What somebody may have written in the place of autodiff's backward pass: one change of it each.

A row of a table is a slip. `ERRORS` are those of an operand that carries an error, `COEFFICIENTS` those
of what multiplies it, `BY_PRIMITIVE` those of one kind of operation, `FIRST` and `WHOLE` those of several
at once. A slip is plainer the smaller its `rank` is; weights are found by least squares.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxbp.check.backward.by_primitive import BY_PRIMITIVE
from jaxbp.check.backward.edit import (
    LARGEST,
    RESULT,
    Edit,
    Values,
    changed_at,
    changed_with,
    fixed,
    named,
    rearranged,
    spreads,
)  # fmt: skip
from jaxbp.check.backward.program import Env
from jaxbp.check.backward.several import FIRST, WHOLE
from jaxbp.check.backward.slopes import slopes
from jaxbp.check.diagnosis.patterns import turns
from jaxbp.check.operations import Constant, Op, is_float

ENDS = 6  # values that may stand where a loop has no next turn
LONGEST = 64  # indices of an axis that get a weight each
SUMS = (
    "reduce_sum",
    "dot_general",
    "add_any",
    "copy",
    "concatenate",
    "gather",
    "pad",
    "broadcast_in_dim",
)
PRODUCTS = ("mul", "div", "dot_general", "conv_general_dilated")


def all_edits(values: Values) -> list[Edit]:
    """Every edit, the plainest first."""
    backward = values.backward
    made: list[Edit] = []
    for op in backward.ops:
        flags = backward.linear[id(op)]
        if not any(flags):
            continue
        for k, error in enumerate(flags):
            for table in ERRORS if error else COEFFICIENTS:
                made += table(values, op, k)
        if not op.bodies and len(op.outputs) == 1 and len(values.uses.get(op.outputs[0], ())) > 1:
            for table in ERRORS:
                made += table(values, op, RESULT)
        made += BY_PRIMITIVE.get(op.primitive.name, _none)(values, op)
    made += slopes(values)
    for whole in (*FIRST, *WHOLE):
        made += whole(values, made)
    return sorted(made, key=lambda e: (e.rank, e.places == 1, backward.order[id(e.op)]))


def _none(values: Values, op: Op) -> Iterator[Edit]:
    yield from ()


# --- an operand that carries an error -----------------------------------------------------------------


def _weight(values: Values, op: Op, k: int) -> Iterator[Edit]:
    yield Edit(op, lambda w: {id(op): changed_at(k, lambda v: v * w[0])}, "", "", 0, 1, key=("weight", k))


def _rows(values: Values, op: Op, k: int) -> Iterator[Edit]:
    shape = values.shape(op, k)
    for axis, n in enumerate(shape):
        if 1 < n <= LONGEST and op.primitive.name in SUMS and not op.bodies:
            spread = [n if a == axis else 1 for a in range(len(shape))]
            make = lambda w, s=spread: {id(op): changed_at(k, lambda v: v * np.reshape(w, s))}  # noqa: E731
            yield Edit(op, make, "", "", 1, n, axis)
    holder = values.backward.top[id(op)]
    if holder is not op and holder.kind == "scan" and holder.loop.length <= LONGEST:
        make = lambda w: {id(op): changed_at(k, lambda v: v * w[values.backward.turn])}  # noqa: E731
        yield Edit(op, make, "", "", 1, holder.loop.length)


def _turned(values: Values, op: Op, k: int) -> Iterator[Edit]:
    shape = values.shape(op, k)
    if op.bodies or int(np.prod(shape)) > LARGEST:
        return
    for cause, words, turn in turns(shape):
        yield fixed(op, changed_at(k, turn), cause, words, 2, (k, words))


def _other_error(values: Values, op: Op, k: int) -> Iterator[Edit]:
    shape = values.shape(op, k)
    if op.bodies or not shape:
        return
    seen: Counter[Any] = Counter()
    for v in values.here(op, of_errors=True):
        if v not in (*op.inputs, *op.outputs) and values.shape_in(v, op) == shape:
            change = changed_with(k, lambda u, env, v=v: env[v])
            seen[values.line_of(v)] += 1
            key = "error", k, values.line_of(v), seen[values.line_of(v)]
            yield fixed(op, change, "wrong-point", f"not that but {{{v}}}", 5, key)


def _times(values: Values, op: Op, k: int) -> Iterator[Edit]:
    """Multiplied by a value that does not belong there, or without one that does."""
    shape = values.shape(op, k)
    if op.bodies or not shape:
        return
    for v in values.here(op):
        of_value = values.shape_in(v, op)
        if of_value is None or not spreads(of_value, shape):
            continue
        for by, words in (
            (np.multiply, f"multiplied by {{{v}}}, once too often"),
            (np.divide, f"not multiplied by {{{v}}}, or divided by it once too often"),
        ):
            change = changed_with(k, lambda u, env, v=v, by=by: by(u, env[v]))
            yield fixed(op, change, "scale", words, 4, (by, k, values.line_of(v)))


# --- what multiplies an error -------------------------------------------------------------------------


def _numeric(values: Values, op: Op, k: int) -> bool:
    v = op.inputs[k]
    if op.bodies or op.primitive.name not in PRODUCTS:
        return False
    if isinstance(v, Constant):
        return np.asarray(v.value).dtype.kind == "f"
    return np.asarray(values.env[v]).dtype.kind == "f" if v in values.env else is_float(op.in_avals[k])


OTHERWISE = (
    ("scale", "without its factor {}", np.ones_like, 1),
    ("scale", "with its factor {} twice over", lambda v: v * np.abs(v), 2),
    ("scale", "with its factor {} inverted", lambda v: 1 / v, 3),
    ("sign", "with its factor {} without sign", np.abs, 3),
    ("scale", "with the root of its factor {}", lambda v: np.sqrt(np.abs(v)), 4),
)


def _factor(values: Values, op: Op, k: int) -> Iterator[Edit]:
    if not _numeric(values, op, k):
        return
    shape = values.shape(op, k)
    name = named(op.inputs[k])
    key = lambda words: ("factor", k, words)  # noqa: E731
    for cause, words, fn, rank in OTHERWISE:
        cause = _lost(values, op, k) if fn is np.ones_like else cause
        yield fixed(op, changed_at(k, fn), cause, words.format(name), rank, key(words))
    for cause, words, turn in rearranged(shape):
        text = f"with its factor {name}, which {words}"
        yield fixed(op, changed_at(k, turn), cause, text, 3, key(words))


def _parts(values: Values, op: Op, k: int) -> Iterator[Edit]:
    """One of the two factors of a factor alone."""
    v, shape = op.inputs[k], values.shape(op, k)
    maker = values.backward.producer.get(v) if isinstance(v, int) else None
    if not _numeric(values, op, k) or maker is None or maker.primitive.name not in ("mul", "div"):
        return
    for n in (0, 1) if maker.primitive.name == "mul" else (0,):
        part = maker.inputs[n]
        if not isinstance(part, Constant) and values.shape(maker, n) not in ((), shape):
            continue

        def alone(u: Any, env: Env, part: Any = part) -> Any:
            return np.broadcast_to(part.value if isinstance(part, Constant) else env[part], np.shape(u))

        words = f"multiplied by {named(part)} alone, without {named(maker.inputs[1 - n])}"
        yield fixed(op, changed_with(k, alone), _lost(values, maker, 1 - n), words, 1, ("part", k, n))


def _lost(values: Values, op: Op, k: int) -> str:
    """What to call it that a factor is left out: a mask, signs, or any other."""
    v = op.inputs[k]
    value = v.value if isinstance(v, Constant) else values.env.get(v, 0.5)
    found = np.unique(value)
    if np.all(np.isin(found, (0, 1))) or (len(found) == 2 and 0 in found):
        return "missing-rows"
    return "sign" if np.size(value) > 1 and len(np.unique(np.abs(found))) == 1 else "scale"


def _other_value(values: Values, op: Op, k: int) -> Iterator[Edit]:
    shape = values.shape(op, k)
    if not _numeric(values, op, k) or not shape:
        return
    seen: Counter[Any] = Counter()
    for v in values.here(op):
        if v != op.inputs[k] and values.shape_in(v, op) == shape:
            words = f"multiplied by {{{v}}} in the place of {named(op.inputs[k])}"
            change = changed_with(k, lambda u, env, v=v: env[v])
            seen[values.line_of(v)] += 1
            yield fixed(
                op,
                change,
                "wrong-point",
                words,
                3,
                ("value", k, values.line_of(v), seen[values.line_of(v)]),
            )


def _neighbour(values: Values, op: Op, k: int) -> Iterator[Edit]:
    """The value of the next turn of a loop, or of the one before."""
    backward, v = values.backward, op.inputs[k]
    holder = backward.top[id(op)]
    if holder is op or backward.home[id(op)] is not holder.bodies[0] or not _numeric(values, op, k):
        return
    body, shape = holder.bodies[0], values.shape(op, k)
    at = body.inputs.index(v) if v in body.inputs else -1
    stacked = holder.inputs[at]
    if at < holder.loop.consts + holder.loop.carry or not isinstance(stacked, int):
        return
    ends = [u for u in values.forward if np.shape(values.env[u]) == shape][:ENDS]
    for step, end in itertools.product((1, -1), (None, *ends)):

        def other(u: Any, env: Env, step: int = step, end: int | None = end) -> Any:
            t = backward.turn + step
            if 0 <= t < holder.loop.length:
                return backward.outer[stacked][t]
            return np.zeros_like(u) if end is None else backward.outer[end]

        turn = "next turn" if step > 0 else "turn before"
        words = f"multiplied by what is {{{v}}} in the {turn}, in the place of that of its own turn"
        yield fixed(op, changed_with(k, other), "wrong-point", words, 3)


ERRORS = (_weight, _rows, _turned, _other_error, _times)
COEFFICIENTS = (_factor, _parts, _other_value, _neighbour)
