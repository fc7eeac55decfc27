"""Another function's slope in the place of an elementwise stretch, by the table of `activations.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxbp.check.backward.edit import Edit, Values, fixed
from jaxbp.check.backward.program import Change, Env
from jaxbp.check.guesses import activations
from jaxbp.check.operations import Op

ENTRYWISE = {
    "mul", "div", "neg", "add_any", "sub", "select_n", "convert_element_type", "copy", "integer_pow"
}  # fmt: skip
MOST = 8  # values at which slopes are tried

FORMULA = "a formula"  # the right one at a wrong value, or that of another function

# `(cause, words, another slope for the right one, rank)`
ALONE = (
    ("wrong-activation", "left out (as if of the identity)", np.ones_like, 2),
    ("wrong-activation", "applied twice", lambda s: s * s, 3),
    ("sign", "without its sign", np.abs, 3),
    (
        "wrong-activation",
        "0 where it is not, and 1 where it is 0",
        lambda s: np.where(s == 0, 1.0, 0.0),
        3,
    ),
)
# the same with a value `u` beside it
BESIDE = (
    ("missing-rows", "right where {} > 0 alone", lambda s, u: s * (u > 0), 4),
    ("missing-rows", "right where {} < 0 alone", lambda s, u: s * (u < 0), 4),
    *(
        (FORMULA, f"that of {n}, at {{}}", lambda s, u, f=f: f(u), 4)
        for n, f in activations.SLOPES.items()
    ),
    *(
        (FORMULA, f"by the formula {n}, for {{}}", lambda s, u, f=f: f(u), 4)
        for n, f in activations.IN_THE_OUTPUT.items()
    ),
)


def slopes(values: Values) -> Iterator[Edit]:
    """Edits of every stretch."""
    for end, start in _stretches(values):
        for cause, words, fn, rank in ALONE:
            change = _slope(start, lambda s, env, fn=fn: fn(s))
            yield fixed(
                end, change, cause, f"multiplied by a slope that is {words}", rank, ("slope", words)
            )
        seen: dict[Any, int] = {}
        own = _own(values, end, start)
        for u in values.near(end.outputs[0], MOST):
            for cause, words, fn, rank in BESIDE:
                change = _slope(start, lambda s, env, fn=fn, u=u: fn(s, env[u]))
                if cause == FORMULA:
                    cause = "wrong-point" if words in own else "wrong-activation"
                text = f"multiplied by a slope that is {words.format(f'{{{u}}}')}"
                key = ("slope", words, values.line_of(u))
                seen[key] = seen.get(key, -1) + 1
                yield fixed(end, change, cause, text, rank, (*key, seen[key]))


def _own(values: Values, end: Op, start: int) -> set[str]:
    """The formulas, by their words, that are the right slope at some value."""
    env, v = values.env, end.outputs[0]
    if v not in env or start not in env:
        return set()
    with np.errstate(all="ignore"):
        right = np.asarray(env[v]) / np.asarray(env[start])
        return {
            words
            for cause, words, fn, _ in BESIDE
            if cause == FORMULA
            and any(np.allclose(fn(right, env[u]), right, 1e-6, 1e-9) for u in values.near(v, MOST))
        }


def _slope(start: int, fn: Any) -> Change:
    def change(run: Any, x: list[Any], env: Env) -> list[Any]:
        made, error = run(x)[0], env[start]
        slope = np.where(error == 0, 0.0, made / np.where(error == 0, 1.0, error))
        return [np.asarray(fn(slope, env)) * error]

    return change


def _stretches(values: Values) -> Iterator[tuple[Op, int]]:
    """`(last operation, error it begins with)`: entries of one are slopes times entries of the other."""
    backward = values.backward
    roots: dict[int, list[int]] = {}
    for op in backward.ops:
        flags = backward.linear[id(op)]
        if not any(flags) or op.primitive.name not in ENTRYWISE or len(op.outputs) != 1:
            continue
        live = [k for k, f in enumerate(flags) if f]
        shape = tuple(values.shape(op, -1))
        if not shape or any(values.shape(op, k) != shape for k in live):
            continue
        chains = [[*roots.get(op.inputs[k], []), op.inputs[k]] for k in live]
        common = [v for v in chains[0] if all(v in c for c in chains)]
        if common:
            roots[op.outputs[0]] = common
    made = backward.producer
    for op in backward.ops:
        found = roots.get(op.outputs[0], []) if len(op.outputs) == 1 else []
        users = (
            [u for u, _ in values.uses.get(op.outputs[0], ()) if u.outputs[0] in roots] if found else []
        )
        if not found or any(u.origin is op.origin for u in users):
            continue  # inside of one derivative
        outside = [v for v in found if v not in made or made[v].origin is not op.origin]
        starts = [*outside[-1:], *(found[:1] if not users else ())]
        for start in dict.fromkeys(starts):
            yield op, start
