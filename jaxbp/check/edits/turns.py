"""Loops that Python unrolls, found again: their turns, what each hands on to the next, and who uses what.

A backward pass through such a loop has to run from the last turn to the first. With the turns known, the
loop can be run with its state handed on in the other direction, as `running.py` does it for a `scan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from jaxbp.check.edits.edit import Rewired
from jaxbp.check.edits.sites import Sites
from jaxbp.check.evaluate import again
from jaxbp.check.operations import Constant, Op, Scope, widen

FEWEST = 3  # turns
LONGEST = 80  # operations in one turn
MOST_OPS = 600  # in a scope that is searched

Carried = dict[int, Any]  # place in the turn -> value before the first turn


@dataclass(eq=False)
class Loop:
    """`turns[t][j]` is operation `j` of turn `t`; results in the places `carried` go to the next turn."""

    turns: list[list[Op]]
    carried: Carried


def wrong_way(sites: Sites) -> Iterator[Rewired]:
    """Loops whose error is handed on from the first turn to the last."""
    words = "run from the first turn to the last, where the error comes back from the last"
    for scope in sites.scopes:
        for loop in _loops(sites, scope):
            last = loop.turns[-1][-1]
            uses = _uses(sites, scope, loop)
            if uses is not None:
                yield Rewired(last, -1, _backwards(loop), "flip", words, uses=uses, about="walk")


def _backwards(loop: Loop) -> Any:
    """Every result of the loop, by number, with the state handed on in the other direction."""
    still = jax.lax.stop_gradient
    place = [{op.outputs[0]: j for j, op in enumerate(turn)} for turn in loop.turns]

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> dict[int, Any]:
        def value(v: Any) -> Any:
            return widen(v.value) if isinstance(v, Constant) else env[v]

        state = {j: value(v) for j, v in loop.carried.items()}
        made: dict[int, Any] = {}
        for t in reversed(range(len(loop.turns))):
            local: dict[int, Any] = {}

            for j, op in enumerate(loop.turns[t]):
                operands = []
                for k, v in enumerate(op.inputs):
                    if isinstance(v, int) and v in place[t]:
                        operands.append(local[place[t][v]])
                        continue
                    before, x = _carried_place(loop, place, t, op, k), value(v)
                    handed = 0.0 if before is None else state[before] - still(state[before])
                    operands.append(x if before is None else still(x) + handed)
                local[j] = again(op, operands)
                made[op.outputs[0]] = local[j]
            state = {j: local[j] for j in loop.carried}
        first, last = loop.turns[0], loop.turns[-1]
        for j in loop.carried:
            true, other = env[last[j].outputs[0]], made[first[j].outputs[0]]
            made[-last[j].outputs[0]] = still(true) + (other - still(other))
        return made

    return make


def _carried_place(loop: Loop, place: list[dict[int, int]], t: int, op: Op, k: int) -> int | None:
    """Of which place of the turn before an operand is the result, or stands for it in the first turn."""
    v = op.inputs[k]
    if t:
        return place[t - 1].get(v) if isinstance(v, int) else None
    j = loop.turns[0].index(op)
    after = loop.turns[1][j].inputs[k]
    return place[0].get(after) if isinstance(after, int) else None


def _uses(sites: Sites, scope: Scope, loop: Loop) -> dict[int, list[tuple[int, int]]] | None:
    """For every operation outside that uses a result: `(operand, number)`, negative for a last state.

    `None` where a result leaves the scope, or is used before the loop ends.
    """
    inside = {id(op) for turn in loop.turns for op in turn}
    numbers = {op.outputs[0]: (t, j) for t, turn in enumerate(loop.turns) for j, op in enumerate(turn)}
    last, final = loop.turns[-1][-1], len(loop.turns) - 1
    if any(v in numbers and v != last.outputs[0] for v in scope.outputs if isinstance(v, int)):
        return None
    seen: list[tuple[Op, int, int]] = []
    for op in scope.ops:
        for k, v in enumerate(op.inputs):
            if id(op) not in inside and isinstance(v, int) and v in numbers:
                if sites.rank[id(op)] < sites.rank[id(last)]:
                    return None
                seen.append((op, k, v))
    every = {numbers[v][1] for _, _, v in seen if numbers[v][0] != final}
    found: dict[int, list[tuple[int, int]]] = {}
    for op, k, v in seen:
        if v == last.outputs[0]:
            continue
        j = numbers[v][1]
        alone = j in loop.carried and j not in every
        found.setdefault(id(op), []).append((k, -v if alone else v))
    j = numbers[last.outputs[0]][1]
    at_end = -last.outputs[0] if j in loop.carried and j not in every else last.outputs[0]
    return {**found, id(last): [(-1, at_end)]}


# --- finding them -------------------------------------------------------------------------------------


def _loops(sites: Sites, scope: Scope) -> Iterator[Loop]:
    """Operations of the same places again and again, at least three times."""
    ops = scope.ops
    keys = [
        (op.place, op.primitive.name, tuple(a.shape for a in op.out_avals)) if _simple(op) else object()
        for op in ops
    ]
    start = 0
    while start < len(ops) <= MOST_OPS:
        length, count = _repeats(keys, start)
        if count < FEWEST:
            start += 1
            continue
        turns = [ops[start + t * length : start + (t + 1) * length] for t in range(count)]
        start += length * count
        carried = _carried(turns)
        if carried and any(turns[0][j].outputs[0] in sites.live for j in carried):
            yield Loop(turns, carried)


def _simple(op: Op) -> bool:
    return op.kind in ("plain", "rule") and len(op.outputs) == 1 and bool(op.place.file)


def _repeats(keys: list[Any], start: int) -> tuple[int, int]:
    """The shortest stretch from `start` that is repeated, and how often it stands there."""
    for length in range(1, min(LONGEST, (len(keys) - start) // FEWEST) + 1):
        if keys[start] != keys[start + length]:
            continue
        count, body = 1, keys[start : start + length]
        while keys[start + count * length : start + (count + 1) * length] == body:
            count += 1
        if count >= FEWEST:
            return length, count
    return 0, 0


def _carried(turns: list[list[Op]]) -> Carried | None:
    """What each turn gets from the one before; `None` where the turns are not wired alike."""
    place = [{op.outputs[0]: j for j, op in enumerate(turn)} for turn in turns]
    carried: Carried = {}
    for j, first in enumerate(turns[0]):
        for k, v in enumerate(first.inputs):
            wired = {_wire(place, t, turn[j].inputs[k]) for t, turn in enumerate(turns) if t}
            if len(wired) != 1 or wired == {("before",)}:
                return None
            source = wired.pop()
            if source[0] == "carried" and carried.setdefault(source[1], v) != v:
                return None
    return carried


def _wire(place: list[dict[int, int]], t: int, v: Any) -> tuple[Any, ...]:
    """Where an operand of turn `t` comes from."""
    if not isinstance(v, int):
        return ("outside",)
    if v in place[t]:
        return "here", place[t][v]
    if v in place[t - 1]:
        return "carried", place[t - 1][v]
    return ("before",) if any(v in p for p in place) else ("outside",)
