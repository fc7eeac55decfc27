"""Errors that are handed on to the wrong value, or only in part.

Where two values look alike (`q` and `k`, two gates, two halves of a split) their errors get exchanged;
where a value has several uses, one use's error is forgotten on one of the ways on from there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax

from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites
from jaxbp.check.edits.together import Together
from jaxbp.check.evaluate import again, ahead
from jaxbp.check.operations import Constant, Op, Scope, widen

LONGEST = 3  # steps in which a value is computed ahead of its time
MOST_HALVES = 60
MOST_PAIRS, MOST_PARTS = 24, 120
MOST_TURNS = 9


def exchanged(sites: Sites) -> list[Together]:
    """The errors of two values of the same shape in each other's place: q and k, two gates, two halves.

    Where a loop is unrolled, those of all its turns at once.
    """
    found: list[Together] = []
    room = MOST_PARTS
    for scope in sites.scopes:
        for values in _turned_round(sites, scope):
            half = len(values) // 2
            parts = _exchange(sites, scope, values[:half], values[::-1][:half], "flip")
            room -= len(parts)
            if parts and room >= 0:
                others = len(values) - 1
                text = f"{sites.describe(values[0])} and of the {others} other turns"
                found.append(Together(parts, text=text))
        for first, second in _pairs(sites, scope):
            if _leads_to(sites, first[0], second[0]):
                continue
            parts = _exchange(sites, scope, first, second, "swapped")
            room -= len(parts)
            if parts and len(found) < MOST_PAIRS and room >= 0:
                text = f"{sites.describe(first[0])} and {sites.describe(second[0])}"
                found.append(Together(parts, text=text))
    return found


def _exchange(
    sites: Sites, scope: Scope, first: list[int], second: list[int], cause: str
) -> list[Instead]:
    """Every use of the first values with the errors of the second, and the other way round."""
    return [
        Instead(op, k, _with_error_of(sites, op, k, other), cause, "")
        for one, other in zip((*first, *second), (*second, *first), strict=True)
        for op in scope.ops
        for k, v in enumerate(op.inputs)
        if v == one and len(op.outputs) == 1
    ]


def _turned_round(sites: Sites, scope: Scope) -> Iterator[list[int]]:
    """What a loop in Python cuts out turn by turn, as the taps of a kernel."""
    lines: dict[Any, list[int]] = {}
    for op in scope.ops:
        if (
            op.primitive.name in ("slice", "dynamic_slice")
            and op.outputs[0] in sites.live
            and op.place.file
        ):
            lines.setdefault((op.place, op.out_avals[0].shape), []).append(op.outputs[0])
    yield from (values for values in lines.values() if 2 < len(values) <= MOST_TURNS)


def _leads_to(sites: Sites, first: int, second: int) -> bool:
    """Whether the second value is made of the first: then neither has the other's place."""
    todo, seen = [second], set()
    while todo and len(seen) < 200:
        v = todo.pop()
        if v == first:
            return True
        maker = sites.producer.get(v)
        if v not in seen and maker is not None:
            seen.add(v)
            todo += [u for u in maker.inputs if isinstance(u, int)]
    return False


def _with_error_of(sites: Sites, op: Op, k: int, other: int) -> Any:
    """The operation with its operand `k` in value, and the other value in what is differentiated."""
    still = jax.lax.stop_gradient

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        operands = [still(v) for v in inputs]
        try:
            moving = ahead(sites.producer, env, other, LONGEST)
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
                weights = (
                    tuple(v for v in op.inputs if v in scope.inputs) if name == "dot_general" else ()
                )
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
                yield Instead(op, k, _without(op, k, [(maker, n)]), "missing-path", words, about="error")
                inner = sites.producer.get(maker.inputs[n])
                if inner is None or inner.kind != "plain" or counts[maker.inputs[n]] > 1:
                    continue
                deeper = [m for m in range(len(inner.inputs)) if sites.is_live(inner, m)]
                for m in deeper if len(deeper) > 1 and len(inner.outputs) == 1 else ():
                    words = f"not handed on to operand {m} of `{inner.name}`, from which that value comes"
                    make = _without(op, k, [(maker, n), (inner, m)])
                    yield Instead(op, k, make, "missing-path", words, about="error")


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
