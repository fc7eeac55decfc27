"""A helper that is called several times in a step, differentiated everywhere as in its first call.

`k1 = f(y)`, `k2 = f(y + h/2 k1)`, …: whoever takes the Jacobian of every stage at `y` has the right
formula at the wrong place, in everything that `f` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxbp.check.edits.edit import Shadow, loops
from jaxbp.check.edits.sites import Sites
from jaxbp.check.guesses.shadows import LINEAR, Taken, editable, turns_around
from jaxbp.check.guesses.stretches import Values
from jaxbp.check.operations import Op, Scope

MOST_STEPS = 60  # operations in one call


def guesses(sites: Sites, known: Values) -> list[Taken]:
    """What may have been differentiated at the first call's values."""
    found: list[Taken] = []
    around = loops(sites.program.scope)
    for scope in sites.scopes:
        lengths = turns_around(sites, scope, known, len(around[id(scope.ops[0])])) if scope.ops else None
        if lengths is not None:
            found += _first_calls(sites, scope, known, lengths)
    return found


def _first_calls(sites: Sites, scope: Scope, known: Values, lengths: tuple[int, ...]) -> Iterator[Taken]:
    """For every later call: the values of the first one in the place of its own."""
    users: dict[int, list[Op]] = {}
    for op in scope.ops:
        for v in {u for u in op.inputs if isinstance(u, int)}:
            users.setdefault(v, []).append(op)
    for y in users:
        if y not in known or y not in sites.live or not sites.shape[y]:
            continue
        lines = {_line(op) for op in users[y]}
        stages = [op for op in users[y] if _is_stage(op, users, lines)]
        if not stages:
            continue
        end = sites.rank[id(stages[0])]
        body = {
            _line(op) for op in _reached(scope, users, y, lambda op, end=end: sites.rank[id(op)] < end)
        }
        for stage in stages:
            p = stage.outputs[0]
            next_state = any(_is_stage(op, users, lines) for op in users[p])
            if p in known and sites.shape[p] == sites.shape[y] and not next_state:
                call = _reached(scope, users, p, lambda op, body=body: _line(op) in body)
                yield from _taken(sites, call, p, y, lengths)


def _is_stage(op: Op, users: dict[int, list[Op]], lines: set[tuple[Any, ...]]) -> bool:
    """Whether it adds to the value, and goes into the lines that the value itself went into before."""
    makes = users.get(op.outputs[0], ()) if op.primitive.name in ("add", "sub") else ()
    return any(_line(o) in lines and o is not op for o in makes)


def _line(op: Op) -> tuple[Any, ...]:
    return op.place, op.primitive.name


def _taken(sites: Sites, call: list[Op], p: int, y: int, lengths: tuple[int, ...]) -> Iterator[Taken]:
    bent = [op for op in call if op.primitive.name not in LINEAR]
    if not bent or not all(editable(op) for op in call):
        return
    shape = (*lengths, *sites.shape[p])
    slot = Shadow(
        bent[0], -2, lambda x, r, env, given: r[0], shape=shape, start=p, uses=tuple(call),
        through=frozenset(id(op) for op in call),
    )  # fmt: skip
    words = "the argument of the first call of the same lines"
    yield Taken(
        slot, "wrong-point", words, lambda env, s: np.broadcast_to(env[y], shape), rank=1, ways=(words,)
    )


def _reached(scope: Scope, users: dict[int, list[Op]], v: int, within: Callable[[Op], bool]) -> list[Op]:
    """What is made of a value, as far as that lies within the call."""
    found: dict[int, Op] = {}
    todo = [v]
    while todo and len(found) < MOST_STEPS:
        for op in users.get(todo.pop(0), ()):
            if id(op) not in found and within(op):
                found[id(op)] = op
                todo += op.outputs
    return [op for op in scope.ops if id(op) in found]
