"""Changing a derivative without changing a value: weights on edges, and other derivatives beside them.

Every edge of a program (an operand of an operation) can carry a weight that multiplies the error which
comes back through it: 0 cuts the edge, 2 counts it twice, -1 turns its sign. An `Instead` replaces what
an operation sends back by something else, which may be *given* as an array, so that one compiled program
serves any number of guesses. A `Change` alters a value, as a backward pass does that computes the forward
pass again and slips there. All weights form one vector; one compiled program, `Edited`, serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.evaluate import again
from jaxbp.check.operations import Editor, Op, Scope, is_float, is_inexact
from jaxbp.check.oracle import Oracle, quick_jit

ROOM = 200_000
CHUNK = 16  # edits in one call, always as many, so that one program is compiled


@jax.custom_vjp
def gate(x: Any, weight: Any) -> Any:
    """`x`; the error that comes back is multiplied by `weight`."""
    return x


gate.defvjp(lambda x, weight: (x, weight), lambda weight, g: (g * weight, jnp.zeros_like(weight)))


@jax.custom_vjp
def beside(y: Any, other: Any, weight: Any) -> Any:
    """`y`; the error goes to `y` as it is and, times `weight`, to `other` too."""
    return y


beside.defvjp(
    lambda y, other, weight: (y, weight), lambda weight, g: (g, g * weight, jnp.zeros_like(weight))
)


@dataclass(frozen=True, eq=False)
class Edge:
    """An operand of an operation; with `axis`, one weight for every index along it.

    `variable` counts every use of the value from here on, `steps` gives every turn of a loop a weight.
    """

    op: Op
    operand: int
    axis: int | None = None
    size: int = 1
    variable: bool = False
    steps: bool = False


@dataclass(frozen=True, eq=False)
class Instead:
    """`make(operands, results, env, given) -> y` differs from the operation in its derivative.

    `operand` is the edge that it replaces; -1 replaces everything that reaches the operation's result.
    `shape` is that of what is given (with the turns of the loops around it first), if anything is.
    """

    op: Op
    operand: int
    make: Callable[[list[Any], list[Any], dict, Any], Any]
    cause: str = ""
    words: str = ""
    rank: int = 0
    shape: tuple[int, ...] | None = None
    whole: bool = False  # `make` gives every result, and all of them are replaced
    tag: Any = None  # tells edits apart that belong together
    about: str = ""  # of what `words` speak: the "error" of an operand, that of a "result", the "walk"

    @property
    def entries(self) -> int:
        return 0 if self.shape is None else prod(self.shape)


@dataclass(frozen=True, eq=False)
class Shadow(Instead):
    """A value for which a given one stands in the derivatives of `uses`; values stay as they are.

    What the operations in `through` make of the given value stands for their results likewise.
    """

    start: int = 0
    uses: tuple[Op, ...] = ()
    through: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Rewired(Instead):
    """`make` gives other values by number, for the operands in `uses`: `id(op) -> [(operand, number)]`.

    It is called at the last operation of what is replaced; operand -1 stands for that one's own result.
    """

    uses: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Change:
    """`make(operands, result, weight)` is the operation's value; with weight 0 it is the right one."""

    op: Op
    make: Callable[[list[Any], Any, Any], Any]
    cause: str
    words: str
    operand: int = 0
    free: float | None = None  # the number that a free weight is added to
    rank: int = 0


class Weights(Editor):
    """Puts the weights of a vector on edges; see `Edited`."""

    def __init__(self, edited: Edited, theta: Any, given: Any):
        self.edited, self.theta, self.given = edited, theta, given
        self.turns: dict[int, Any] = {}
        self.shadows: dict[tuple[int, int], Any] = {}
        self.right: dict[int, list[Any]] = {}
        self.made: dict[int, dict[int, Any]] = {}

    def turn(self, op: Op, index: Any) -> None:
        self.turns[id(op)] = index

    def operands(self, op: Op, values: list[Any]) -> list[Any]:
        for at, edge in self.edited.at_edges.get(id(op), ()):
            if not edge.variable:
                x = values[edge.operand]
                values[edge.operand] = gate(x, self._weight(at, edge, x))
        for at, other in self.edited.at_others.get(id(op), ()):
            if other.operand >= 0:
                values[other.operand] = gate(values[other.operand], 1 - self.theta[at])
        for at, other in self.edited.at_uses.get(id(op), ()):
            for k, number in other.uses[id(op)]:
                if k >= 0:
                    values[k] = self._rewired(at, values[k], number)
        return self._shadowed(op, values)

    def _rewired(self, at: int, right: Any, number: int) -> Any:
        """The value, whose error goes to the one that was made for it."""
        weight = self.theta[at]
        return beside(gate(right, 1 - weight), self.made[at][number], weight)

    def _shadowed(self, op: Op, values: list[Any]) -> list[Any]:
        """The operands, with what stands for them; the right ones are kept."""
        found = self.edited.at_shadows.get(id(op), ())
        if not found:
            return values
        self.right[id(op)] = values
        values = list(values)
        for at, shadow in found:
            for k, v in enumerate(op.inputs):
                given = self._given(at, op, shadow) if v == shadow.start else None
                given = self.shadows.get((at, v)) if isinstance(v, int) and given is None else given
                if given is not None:
                    values[k] = values[k] + self.theta[at] * jax.lax.stop_gradient(given - values[k])
        return values

    def _unshadowed(self, op: Op, results: list[Any]) -> list[Any]:
        """The right result, with the derivative at what stands for the operands."""
        found = self.edited.at_shadows.get(id(op), ())
        if not found:
            return results
        still = jax.lax.stop_gradient
        right = again(op, [still(x) for x in self.right.pop(id(op))])
        for at, shadow in found:
            if id(op) in shadow.through:
                self.shadows[at, op.outputs[0]] = still(results[0])
        return [results[0] + still(right - results[0])]

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        results = self._unshadowed(op, results)
        for at, change in self.edited.at_changes.get(id(op), ()):
            results[0] = change.make(operands, results[0], self.theta[at])
        for at, edge in self.edited.at_edges.get(id(op), ()):
            if edge.variable:
                y = results[edge.operand]
                results[edge.operand] = gate(y, self._weight(at, edge, y))
        others = self.edited.at_others.get(id(op), ())
        for at, other in others:
            if isinstance(other, Rewired):
                here = {**env, **dict(zip(op.outputs, results, strict=True))}
                self.made[at] = other.make(operands, results, here, None)
                for _, number in other.uses[id(op)]:
                    results[0] = self._rewired(at, results[0], number)
        others = [(at, other) for at, other in others if not isinstance(other, Rewired)]
        for at, other in others:
            if other.operand < 0:
                count = len(results) if other.whole else 1
                weight = 1 - self.theta[at]
                results[:count] = [gate(r, weight) if is_float(r) else r for r in results[:count]]
        for at, other in others:
            inputs = [
                env.get(v) if isinstance(v, int) else o for v, o in zip(op.inputs, operands, strict=True)
            ]
            made = other.make(inputs, results, env, self._given(at, op, other))
            for n, one in enumerate(made if other.whole else [made]):
                if is_inexact(results[n]):
                    full = jnp.broadcast_to(one, results[n].shape)
                    results[n] = beside(results[n], full, self.theta[at])
        return results

    def _given(self, at: int, op: Op, other: Instead) -> Any:
        """What is given, in this turn of the loops around the operation."""
        if other.shape is None:
            return None
        start = self.edited.offsets[at - self.edited.weights]
        value = self.given[start : start + other.entries].reshape(other.shape)
        for loop in self.edited.loops[id(op)]:
            value = value[self.turns[id(loop)]]
        return value

    def _weight(self, at: int, edge: Edge, value: Any) -> Any:
        if edge.steps:
            return self.theta[at + self.turns[id(self.edited.loops[id(edge.op)][-1])]]
        if edge.axis is None:
            return self.theta[at]
        shape = [1] * value.ndim
        shape[edge.axis] = edge.size
        return self.theta[at : at + edge.size].reshape(shape)


class Edited:
    """The oracle's gradient with editable edges: `run(thetas, leaves, dy) -> [leaf][edit, ...]`."""

    def __init__(
        self,
        oracle: Oracle,
        edges: Sequence[Edge] = (),
        others: Sequence[Instead] = (),
        changes: Sequence[Change] = (),
    ):
        self.edges, self.others, self.changes = list(edges), list(others), list(changes)
        self.starts = np.cumsum([0, *(e.size for e in self.edges)]).astype(int)
        self.weights = int(self.starts[-1])
        self.size = self.weights + len(self.others) + len(self.changes)
        ends = np.cumsum([0, *(o.entries for o in self.others)]).astype(int)
        self.apart = (
            int(ends[-1]) <= ROOM
        )  # each has its own place in what is given, or all have the same
        self.offsets = ends if self.apart else np.zeros_like(ends)
        self.room = int(ends[-1]) if self.apart else max([0, *(o.entries for o in self.others)])
        self.loops = loops(oracle.program.scope)
        self.at_edges = _by_op(self.edges, self.starts)
        places = range(self.weights, self.size)
        plain = [(at, o) for at, o in zip(places, self.others, strict=False) if not isinstance(o, Shadow)]
        self.at_others = _by_op([o for _, o in plain], [at for at, _ in plain])
        self.at_uses: dict[int, list[tuple[int, Rewired]]] = {}
        self.at_shadows: dict[int, list[tuple[int, Shadow]]] = {}
        for at, other in enumerate(self.others, self.weights):
            if isinstance(other, Rewired):
                for key in other.uses:
                    self.at_uses.setdefault(key, []).append((at, other))
            if isinstance(other, Shadow):
                for op in other.uses:
                    self.at_shadows.setdefault(id(op), []).append((at, other))
        self.at_changes = _by_op(self.changes, range(self.weights + len(self.others), self.size))

        def gradient(theta: Any, given: Any, leaves: list[Any], dy: list[Any]) -> list[Any]:
            def outputs(values: list[Any]) -> list[Any]:
                run = oracle.program.run(values, Weights(self, theta, given))
                return [y for y in run if is_float(y)]

            return list(jax.vjp(outputs, leaves)[1](dy)[0])

        def batch(thetas: Any, given: Any, leaves: list[Any], dy: list[Any]) -> list[Any]:
            return jax.lax.map(lambda row: gradient(row[0], row[1], leaves, dy), (thetas, given))

        self._batch = quick_jit(batch)

    def neutral(self) -> np.ndarray:
        """The weights with which nothing is changed."""
        return np.concatenate([np.ones(self.weights), np.zeros(self.size - self.weights)])

    def run(
        self, thetas: np.ndarray, leaves: list[Any], dy: list[Any], given: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The cotangents of every leaf for every row of weights. Call it inside `float64()`."""
        given = np.zeros((len(thetas), self.room)) if given is None else given
        parts = [
            self._chunk(thetas[n : n + CHUNK], given[n : n + CHUNK], leaves, dy)
            for n in range(0, len(thetas), CHUNK)
        ]
        return [np.concatenate(leaf) for leaf in zip(*parts, strict=True)]

    def _chunk(self, thetas: np.ndarray, given: np.ndarray, leaves: Any, dy: Any) -> list[np.ndarray]:
        count = len(thetas)
        thetas = np.concatenate([thetas, np.tile(self.neutral(), (CHUNK - count, 1))])
        given = np.concatenate([given, np.zeros((CHUNK - count, self.room))])
        made = self._batch(jnp.asarray(thetas), jnp.asarray(given), leaves, dy)
        return [np.asarray(g)[:count] for g in made]


def _by_op(edits: Sequence[Any], starts: Any) -> dict[int, list[tuple[int, Any]]]:
    found: dict[int, list[tuple[int, Any]]] = {}
    for start, edit in zip(starts, edits, strict=False):
        found.setdefault(id(edit.op), []).append((int(start), edit))
    return found


def loops(scope: Scope, around: tuple[Op, ...] = ()) -> dict[int, tuple[Op, ...]]:
    """The scans around each operation, the outermost first, by `id`."""
    found = {}
    for op in scope.ops:
        found[id(op)] = around
        inside = (*around, op) if op.kind == "scan" else around
        for body in op.bodies if op.kind != "rule" else ():
            found.update(loops(body, inside))
    return found
