"""One slip in many places: a line that runs several times, or a value that a library takes apart.

A loop that Python unrolls, or a helper that is called again, leaves many operations with the same source
line; one slip in it changes all of them at once. So does a value that is used several times in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxbp.check.edits.edit import Edge
from jaxbp.check.operations import Op


@dataclass(eq=False)
class Together:
    """Edges, or guesses, that are changed at once; `op` and `operand` are the last one's."""

    parts: list[Any]
    size: int = 1
    variable: bool = False
    text: str = ""

    @property
    def op(self) -> Op:
        return self.parts[-1].op

    @property
    def operand(self) -> int:
        return self.parts[-1].operand

    @property
    def cause(self) -> str:
        return self.parts[-1].cause

    @property
    def words(self) -> str:
        return self.parts[-1].words

    @property
    def about(self) -> str:
        return getattr(self.parts[-1], "about", "")

    @property
    def rank(self) -> int:
        return self.parts[-1].rank

    @property
    def slot(self) -> Any:
        return self.parts[-1].slot

    @property
    def one_value(self) -> bool:
        """Whether it is a loop in Python that uses one value in every turn: a weight, a learning rate."""
        first = self.parts[0]
        return len(self.parts) > 2 and all(
            isinstance(part, Edge)
            and (part.op.place, part.op.primitive, part.operand)
            == (first.op.place, first.op.primitive, first.operand)
            and part.op.inputs[part.operand] == first.op.inputs[first.operand]
            for part in self.parts
        )


def same_line(edges: list[Edge]) -> list[Together]:
    """Edges into the same operand of the same line's operations, and all uses of a value in a line."""
    groups: dict[tuple[Any, ...], list[Edge]] = {}
    for edge in edges:
        op = edge.op
        if not edge.variable and op.place.file:
            for line in _lines(op):
                groups.setdefault((*line, op.primitive.name, edge.operand), []).append(edge)
            groups.setdefault((*_lines(op)[1], "value", op.inputs[edge.operand]), []).append(edge)
    loops = [group for group in groups.values() if len(group) > 2]
    ends = [part for group in loops for part in (group[1:], group[:-1])]
    lists = [group for group in groups.values() if len(group) > 1]
    return _distinct(lists + ends + _stages(edges))


def _stages(edges: list[Edge]) -> list[list[Edge]]:
    """What is added to one value in several lines: the stages of a step, the last sum left out too.

    `k2 = f(y + h/2 k1)`, `k3 = f(y + h/2 k2)`, …, `y + h/6 (k1 + …)`; where steps are unrolled, all of
    them together.
    """
    sums: dict[Any, list[Edge]] = {}
    for edge in edges:
        other = edge.op.inputs[1 - edge.operand] if len(edge.op.inputs) == 2 else None
        if edge.op.primitive.name == "add" and not edge.variable and isinstance(other, int):
            sums.setdefault((other, edge.operand), []).append(edge)
    steps: dict[Any, list[Edge]] = {}
    for group in sums.values():
        lines = {(e.op.place.file, e.op.place.line) for e in group}
        if len(lines) == len(group) > 1 and group[0].op.place.file:
            steps.setdefault(tuple(sorted(lines)), []).extend(group)
    found = []
    for lines, group in steps.items():
        last = max(lines)
        found += [group, [e for e in group if (e.op.place.file, e.op.place.line) != last]]
    return [group for group in found if len(group) > 1]


@dataclass(eq=False)
class Weighted(Together):
    """Edges that all have the same weight, in a loop, where the effect is not in proportion to it."""

    weight: float = 0.0


def weighted(sites: Any, edges: list[Edge], groups: list[Together]) -> list[Weighted]:
    """Of the wrong sign, or counted twice, in every turn of a loop."""
    again = [[e] for e in edges if sites.holder[id(e.op)] is not None and not e.steps]
    parts = [*again, *(g.parts for g in groups if not g.one_value)]
    return [Weighted(some, weight=w) for some in parts for w in (-1.0, 2.0)]


def alike(guesses: list[Any]) -> list[Together]:
    """The same guess at every operation of the same kind in a line."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for guess in guesses:
        op, ways = guess.op, getattr(guess, "ways", (0,))
        for way in (w for w in ways if isinstance(w, tuple) and w[0] == "together"):
            groups.setdefault(way, []).append(guess)
        if op.place.file:
            for line in _lines(op):
                for way in (w for w in ways if not isinstance(w, tuple) or w[0] != "together"):
                    words = "" if isinstance(way, tuple) and way[0] == "turns" else guess.words
                    key = (*line, op.primitive.name, guess.operand, words, way)
                    groups.setdefault(key, []).append(guess)
        if not hasattr(guess, "slot"):
            key = ("everywhere", op.primitive.name, guess.operand, guess.words)
            groups.setdefault(key, []).append(guess)
    one_each = [
        g
        for g in groups.values()
        if len({id(getattr(guess, "slot", guess)) for guess in g}) == len(g) > 1
    ]
    return _distinct(one_each)


def _lines(op: Op) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The expression that an operation is of, and the whole line that holds it."""
    line = op.place.file, op.place.line
    return (*line, op.place.column, op.place.end), line


def _distinct(groups: list[list[Any]]) -> list[Together]:
    found = {frozenset(map(id, group)): group for group in groups}
    return [Together(group) for group in found.values()]
