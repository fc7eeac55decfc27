"""Changing a derivative without changing a value: weights on edges, and other derivatives beside them.

Every edge of a program (an operand of an operation) can carry a weight that multiplies the error which
comes back through it: 0 cuts the edge, 2 counts it twice, -1 turns its sign. An `Instead` replaces what
an operation sends back to one operand by something else. All weights form one vector, so that one
compiled program, `Edited`, serves every edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.oracle import Oracle
from jaxbp.check.program import Editor, Op, Scope, is_float


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
    """`make(operands, results, env) -> y` differs from the operation in its derivative by `operand`.

    `operand` is the edge that it replaces; -1 replaces everything that reaches the operation's result.
    """

    op: Op
    operand: int
    make: Callable[[list[Any], list[Any], dict], Any]
    cause: str
    words: str
    ahead: bool = False
    rank: int = 0


class Weights(Editor):
    """Puts the weights of a vector on edges; see `Edited`."""

    def __init__(self, edges: Sequence[Edge], others: Sequence[Instead], theta: Any, scopes: dict):
        self.theta, self.scopes = theta, scopes
        self.edges: dict[int, list[tuple[int, Edge]]] = {}
        self.others: dict[int, list[tuple[int, Instead]]] = {}
        self.turns: dict[int, Any] = {}
        self.known: list[dict] = []
        start = 0
        for edge in edges:
            self.edges.setdefault(id(edge.op), []).append((start, edge))
            start += edge.size
        for other in others:
            self.others.setdefault(id(other.op), []).append((start, other))
            start += 1

    def operands(self, op: Op, values: list[Any]) -> list[Any]:
        for at, edge in self.edges.get(id(op), ()):
            if not edge.variable:
                values[edge.operand] = gate(
                    values[edge.operand], self._weight(at, edge, values[edge.operand])
                )
        for at, other in self.others.get(id(op), ()):
            if other.operand >= 0:
                values[other.operand] = gate(values[other.operand], 1 - self.theta[at])
        return values

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        for at, edge in self.edges.get(id(op), ()):
            if edge.variable:
                results[edge.operand] = gate(results[edge.operand], self.theta[at])
        for at, other in self.others.get(id(op), ()):
            if other.operand < 0:
                results[0] = gate(results[0], 1 - self.theta[at])
        for at, other in self.others.get(id(op), ()):
            inputs = [
                env.get(v) if isinstance(v, int) else o for v, o in zip(op.inputs, operands, strict=True)
            ]
            known = {**(self.known[-1] if self.known else {}), **env}
            made = jnp.broadcast_to(other.make(inputs, results, known), results[0].shape)
            results[0] = beside(results[0], made, self.theta[at])
        return results

    def turn(self, op: Op, index: Any) -> None:
        self.turns[id(op)] = index

    def enter(self, scope: Scope, values: list[Any], run: Callable[[Editor], Any]) -> None:
        """Where something later in the scope is needed earlier, compute the whole scope first."""
        wanted = any(o.ahead for op in scope.ops for _, o in self.others.get(id(op), ()))
        recorder = _Recorder()
        if wanted:
            run(recorder)
        self.known.append({k: jax.lax.stop_gradient(v) for k, v in recorder.env.items()})

    def leave(self) -> None:
        self.known.pop()

    def _weight(self, at: int, edge: Edge, value: Any) -> Any:
        if edge.steps:
            return self.theta[at + self.turns[id(self.scopes[id(edge.op)])]]
        if edge.axis is None:
            return self.theta[at]
        shape = [1] * value.ndim
        shape[edge.axis] = edge.size
        return self.theta[at : at + edge.size].reshape(shape)


class _Recorder(Editor):
    def __init__(self) -> None:
        self.env: dict = {}
        self.depth = 0

    def enter(self, scope: Scope, values: list[Any], run: Any) -> None:
        self.depth += 1

    def leave(self) -> None:
        self.depth -= 1

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        if self.depth == 1:
            self.env.update(zip(op.outputs, results, strict=True))
        return results


class Edited:
    """The oracle's gradient with editable edges: `run(thetas, point) -> [leaf][edit, ...]`."""

    def __init__(self, oracle: Oracle, edges: Sequence[Edge], others: Sequence[Instead] = ()):
        self.edges, self.others = list(edges), list(others)
        self.starts = np.cumsum([0, *(e.size for e in self.edges)]).astype(int)
        self.size = int(self.starts[-1]) + len(self.others)
        holders = _holders(oracle.program.scope, None)

        def gradient(theta: Any, leaves: list[Any], dy: list[Any]) -> list[Any]:
            def outputs(values: list[Any]) -> list[Any]:
                editor = Weights(self.edges, self.others, theta, holders)
                return [y for y in oracle.program.run(values, editor) if is_float(y)]

            return list(jax.vjp(outputs, leaves)[1](dy)[0])

        def batch(thetas: Any, leaves: list[Any], dy: list[Any]) -> list[Any]:
            return jax.lax.map(lambda theta: gradient(theta, leaves, dy), thetas)

        self._batch = jax.jit(batch)

    def neutral(self) -> np.ndarray:
        """The weights with which nothing is changed."""
        return np.concatenate([np.ones(int(self.starts[-1])), np.zeros(len(self.others))])

    def run(self, thetas: np.ndarray, leaves: list[Any], dy: list[Any]) -> list[np.ndarray]:
        """Call it inside `float64()`. Numbers of edits are rounded up, so that few programs compile."""
        count = len(thetas)
        padded = np.concatenate([thetas, np.tile(self.neutral(), (-count % 8, 1))])
        return [np.asarray(g)[:count] for g in self._batch(jnp.asarray(padded), leaves, dy)]


def _holders(scope: Scope, holder: Op | None) -> dict[int, Any]:
    """The operation whose body each operation stands in, by `id`."""
    found = {}
    for op in scope.ops:
        found[id(op)] = holder
        for body in op.bodies if op.kind != "rule" else ():
            found.update(_holders(body, op))
    return found
