"""A change of a backward pass, the values that it may be made with, and how an operation is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxbp.check.backward.program import Backward, Change, Changes, Env
from jaxbp.check.diagnosis.patterns import turns
from jaxbp.check.operations import Constant, Op, is_float

LARGEST = 20_000  # entries of an array that is turned
MOST_VALUES = 24


@dataclass(frozen=True, eq=False)
class Edit:
    """`make(weights)` are the changed operations; `size` weights are to be found, the right ones are 1.

    `words` speak of the error that comes back through `op`, with `{3}` for value 3; `axis` is the one
    that is weighted. `key` is the same for the same slip at another operation of that line.
    """

    op: Op
    make: Callable[[Any], Changes]
    cause: str
    words: str
    rank: int
    size: int = 0
    axis: int | None = None
    places: int = 1
    key: Any = None


RESULT = -1  # in the place of an operand: what comes out, for all of its uses


def changed_at(k: int, fn: Callable[[Any], Any]) -> Change:
    """The operation with a changed operand, or result."""
    return changed_with(k, lambda v, env: fn(v))


def changed_with(k: int, fn: Callable[[Any, Env], Any]) -> Change:
    """The same with a change that needs other values."""
    if k == RESULT:
        return lambda run, x, env: [fn(v, env) for v in run(x)]
    return lambda run, x, env: run([fn(v, env) if n == k else v for n, v in enumerate(x)])


def fixed(op: Op, change: Change, cause: str, words: str, rank: int, key: Any = None) -> Edit:
    """An edit without weights."""
    return Edit(op, lambda w: {id(op): change}, cause, words, rank, key=words if key is None else key)


class Values:
    """The values of a backward pass at one point: which can stand in each other's place."""

    def __init__(self, backward: Backward, env: Env):
        self.backward, self.env = backward, env
        self.uses: dict[int, list[tuple[Op, int]]] = {}
        for op in backward.ops:
            for k, v in enumerate(op.inputs):
                if isinstance(v, int):
                    self.uses.setdefault(v, []).append((op, k))
        lin = backward.linear
        errors = {v for op in backward.ops for v, f in zip(op.inputs, lin[id(op)], strict=True) if f}
        errors |= {v for op in backward.ops if any(lin[id(op)]) for v in op.outputs}
        self.errors = errors
        self.forward = self._distinct(
            v for v in env if v not in errors and np.asarray(env[v]).dtype.kind == "f"
        )

    def _distinct(self, some: Any) -> list[int]:
        seen: set[Any] = set()
        kept = []
        for v in some:
            key = np.shape(self.env[v]), np.asarray(self.env[v]).tobytes()
            if key not in seen and np.all(np.isfinite(self.env[v])):
                seen.add(key)
                kept.append(v)
        return kept

    def shape(self, op: Op, k: int) -> tuple[int, ...]:
        v = op.outputs[0] if k == RESULT else op.inputs[k]
        if isinstance(v, Constant):
            return np.shape(v.value)
        return (
            np.shape(self.env[v])
            if v in self.env
            else (tuple((op.out_avals[0] if k == RESULT else op.in_avals[k]).shape))
        )

    def here(self, op: Op, of_errors: bool = False) -> list[int]:
        """Values of the scope of an operation, those of the forward pass or errors, the nearest first."""
        scope = self.backward.home[id(op)]
        if scope is not self.backward.scope:
            inside = [*scope.inputs, *(v for one in scope.ops for v in one.outputs)]
            return [v for v in inside if (v in self.errors) == of_errors]
        at = self.backward.order[id(op)]
        some = (
            [v for v in self.errors if v in self.env and self.at(v) < at] if of_errors else self.forward
        )
        return sorted(some, key=lambda v: (abs(self.at(v) - at), v))[:MOST_VALUES]

    def at(self, v: int) -> int:
        """Where a value is made; arguments come before everything."""
        maker = self.backward.producer.get(v)
        return -1 if maker is None else self.backward.order[id(maker)]

    def near(self, v: int, most: int = 12) -> list[int]:
        """Other values of the forward pass with the shape of this one: arguments, then the nearest."""
        if v not in self.env:
            return []
        shape, at = np.shape(self.env[v]), self.at(v)
        some = [u for u in self.forward if u != v and np.shape(self.env[u]) == shape and self._seen(u)]
        return sorted(some, key=lambda u: (self.at(u) >= 0, abs(self.at(u) - at)))[:most]

    def _seen(self, v: int) -> bool:
        """Whether a value is used outside of the library function that computes it."""
        maker, users = self.backward.producer.get(v), self.uses.get(v, [])
        if maker is None or not maker.within or not users:
            return True
        where = maker.place.file, maker.within
        forward = [op for op, _ in users if not any(self.backward.linear[id(op)])]
        return any((op.place.file, op.within) != where for op in forward)

    def line(self, op: Op) -> tuple[Any, ...]:
        """The same for an operation in every turn of a loop in Python."""
        place = op.place
        return place.file, place.line, op.within, place.column, op.primitive.name, op.origin is None

    def line_of(self, v: Any) -> Any:
        maker = self.backward.producer.get(v) if isinstance(v, int) else None
        return v if maker is None else self.line(maker)

    def shape_in(self, v: int, op: Op) -> tuple[int, ...] | None:
        if v in self.env:
            return np.shape(self.env[v])
        maker = self.backward.producer.get(v)
        if maker is not None:
            aval = maker.out_avals[maker.outputs.index(v)]
            return tuple(aval.shape) if is_float(aval) else None
        users = self.uses.get(v)
        if not users or users[0][0].in_avals[users[0][1]] is None:
            return None
        aval = users[0][0].in_avals[users[0][1]]
        return tuple(aval.shape) if is_float(aval) else None


def rearranged(shape: tuple[int, ...]) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """Rearrangements, and one entry of an axis for all."""
    if int(np.prod(shape)) > LARGEST:
        return
    yield from turns(shape)
    for axis, n in enumerate(shape):
        for at in (0, -1) if n > 1 else ():
            fn = lambda v, a=axis, i=at: np.broadcast_to(np.take(v, [i], a), v.shape)  # noqa: E731
            yield "wrong-point", f"has entry {at % n} of axis {axis} in the place of all", fn


def named(v: Any) -> str:
    if isinstance(v, Constant):
        return f"{float(np.ravel(v.value)[0]):.6g}" if np.size(v.value) == 1 else "(a fixed array)"
    return f"{{{v}}}"


def spreads(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a value spreads over a shape."""
    pairs = zip(reversed(small), reversed(shape), strict=False)
    return len(small) <= len(shape) and all(a in (1, b) for a, b in pairs) and int(np.prod(small)) > 1
