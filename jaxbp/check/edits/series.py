"""The values that one line makes in the turns of a loop that Python unrolls, and what it begins with.

A guess that another value stands in the place of the right one is the same guess in every turn if it
names the value of as many turns before. In the first turn that may be what the loop begins with.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from jaxbp.check.edits.sites import Sites
from jaxbp.check.operations import Op

Key = tuple[Any, ...]
MOST_STEPS = 400  # operations looked at between a value and that of the turn before
_known: WeakKeyDictionary[Sites, tuple[dict[Key, list[int]], dict[int, list[Key]]]] = WeakKeyDictionary()


def ways(sites: Sites, op: Op, v: int, words: str) -> tuple[Any, ...]:
    """Which value it is: itself, and counted in turns from the operation on.

    `words` name it in a guess; what they say beside its name tells one kind of guess from another.
    """
    made, first = _series(sites)
    found: list[Any] = [("value", v)]
    keys = [(key, made[key].index(v)) for key in [_key(sites, v)] if key in made]
    keys += [(key, -1) for key in first.get(v, ())]
    for key, index in keys:
        before = sum(sites.rank[id(sites.producer[o])] < sites.rank[id(op)] for o in made[key])
        found.append(("turns", *key[:3], index - before, words.replace(sites.describe(v), "")))
    return tuple(found)


def _key(sites: Sites, v: int) -> Key:
    op = sites.producer.get(v)
    if op is None or not op.place.file:
        return ()
    return op.place, op.primitive.name, op.outputs.index(v), id(sites.home[id(op)])


def _series(sites: Sites) -> tuple[dict[Key, list[int]], dict[int, list[Key]]]:
    """`(key -> values in their order, value -> keys of the loops that begin with it)`."""
    if sites not in _known:
        made: dict[Key, list[int]] = {}
        for op in sites.ops():
            for v in op.outputs if op.place.file else ():
                made.setdefault(_key(sites, v), []).append(v)
        first: dict[int, list[Key]] = {}
        for key, values in made.items():
            v = _begins(sites, values[0], values[1]) if len(values) > 1 else None
            if v is not None and sites.shape.get(v) == sites.shape[values[0]] and v in sites.live:
                first.setdefault(v, []).append(key)
        _known[sites] = made, first
    return _known[sites]


def _begins(sites: Sites, once: int, again: int) -> int | None:
    """What stands where the second turn uses the value of the first."""
    route = _route(sites, again, once)
    v: Any = once
    for name, k in route or ():
        op = sites.producer.get(v) if isinstance(v, int) else None
        if op is None or op.primitive.name != name or k >= len(op.inputs):
            return None
        v = op.inputs[k]
    return v if route and isinstance(v, int) and v != once else None


def _route(sites: Sites, late: int, early: int) -> list[tuple[str, int]] | None:
    """The operands that lead from a value back to an earlier one, the shortest way."""
    seen, front = {late}, [(late, [])]
    least = sites.rank[id(sites.producer[early])]
    while front and len(seen) < MOST_STEPS:
        further: list[tuple[int, list[tuple[str, int]]]] = []
        for v, route in front:
            op = sites.producer.get(v)
            for k, u in enumerate(op.inputs if op is not None and sites.rank[id(op)] > least else ()):
                if u == early:
                    assert op is not None
                    return [*route, (op.primitive.name, k)]
                if isinstance(u, int) and u not in seen and op is not None:
                    seen.add(u)
                    further.append((u, [*route, (op.primitive.name, k)]))
        front = further
    return None


def turns_beside(sites: Sites, v: int) -> list[int]:
    """What the turn before and the turn after have in the place of a value."""
    made, first = _series(sites)
    values = made.get(_key(sites, v), [])
    starts = [u for u, keys in first.items() if _key(sites, v) in keys]
    line = [*starts[:1], *values]
    n = line.index(v) if v in line else -1
    found = [line[n - 1]] if n > 0 else []
    found += [line[n + 1]] if 0 <= n < len(line) - 1 else []
    return found + [made[key][0] for key in first.get(v, ())]


def series_of(sites: Sites, v: int) -> list[int]:
    """The values that the line of a value makes, turn by turn."""
    return _series(sites)[0].get(_key(sites, v), [])
