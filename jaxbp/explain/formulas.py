"""How to write a local derivative: found by trying formulas on the numbers, never by a layer's name.

A layer's own `pull` says what `∂y_i/∂x_j` is, at this point and at points drawn at random. A formula
from the short lists below is shown for it when it gives those numbers at every one of them; when none
does, the derivative keeps its symbol `∂y_i/∂x_j` and its number. So a layer that somebody adds gets its
formulas without a line here, and a formula can never be shown that the numbers contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.explain import jacobian
from jaxbp.explain.graph import Block, Bundle, Graph, Part
from jaxbp.explain.names import Target, notes_name
from jaxbp.explain.symbols import ONE, Expr, call, exp, mul, name, neg, num, power, step, sub

DRAWS = 4
Point = tuple[Any, ...]


def _close(got: Iterable[float], expected: Iterable[float]) -> bool:
    return bool(np.allclose(list(got), list(expected), rtol=1e-9, atol=1e-13))


# `a` is the input neuron of an edge, `h` its output neuron, `k` the output neuron in the input's place.
# fmt: off
OWN: list[tuple[Callable[[Expr, Expr], Expr], Callable[[float, float], float]]] = [
    #  as it is written                              as it is computed
    (lambda a, h: ONE,                               lambda a, h: 1.0),
    (lambda a, h: mul(h, sub(ONE, h)),               lambda a, h: h * (1 - h)),
    (lambda a, h: sub(ONE, power(h, num(2))),        lambda a, h: 1 - h * h),
    (lambda a, h: step(a)          ,               lambda a, h: float(a > 0)),
    (lambda a, h: sub(ONE, exp(neg(h))),             lambda a, h: 1 - np.exp(-h)),
]
ACROSS: list[tuple[Callable[[Expr, Expr], Expr], Callable[[float, float], float]]] = [
    (lambda k, h: neg(mul(k, h)),                    lambda k, h: -k * h),
    (lambda k, h: neg(exp(k)),                       lambda k, h: -np.exp(k)),
]
# fmt: on


@dataclass
class Formulas:
    """Formulas of one graph; what was found out about a row of derivatives is kept."""

    graph: Graph
    _points: dict[int, list[Point]] = field(default_factory=dict)
    _rows: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)
    _found: dict[Any, Expr | None] = field(default_factory=dict)
    _slopes: list[Any] = field(default_factory=list)

    def edge(self, bundle: Bundle, j: int, i: int) -> Expr | None:
        """`∂target_i/∂source_j` as a formula, or `None`."""
        key = (bundle.source.number, bundle.target.number, j, i)
        if key not in self._found:
            if bundle.target is self.graph.end:
                self._found[key] = self._loss(bundle.source, j)
            elif bundle.part is None:
                self._found[key] = ONE
            else:
                self._found[key] = self._edge(bundle.part, bundle.source, bundle.target, j, i)
        return self._found[key]

    def weight(self, target: Target, block: Block, i: int) -> Expr | None:
        """`∂block_i/∂w` as a formula: the input neuron that the weight meets, or 1."""
        part = next(p for p in self.graph.parts if p.target is block)
        if part.source.value.size > 100_000 or part.target.value.size > 4096:
            return None
        here = [(part.params, part.x, part.y, part.saved), *self._at(part)]
        rows = [
            jacobian.touches(part.layer, p, s, y, target.leaf, target.index)[i] for p, _, y, s in here
        ]
        if _close(rows, [1.0] * len(rows)):
            return ONE
        inputs = np.stack([jacobian.flat(x) for _, x, _, _ in here])
        same = np.flatnonzero(np.all(np.isclose(inputs, np.asarray(rows)[:, None], rtol=1e-12), axis=0))
        return name(part.source.neuron(int(same[0]))) if same.size == 1 else None

    def _at(self, part: Part) -> list[Point]:
        number = part.target.number
        if number not in self._points:
            at = (part.layer, part.params, part.x, part.mode)
            self._points[number] = [jacobian.draw(*at, 8 + k, signed=True) for k in range(DRAWS)]
        return self._points[number]

    def _row(self, part: Part, i: int) -> list[np.ndarray]:
        """Row `i` of the Jacobian here and at the points drawn."""
        key = (part.target.number, i)
        if key not in self._rows:
            here = [(part.params, part.x, part.y, part.saved), *self._at(part)]
            self._rows[key] = [jacobian.row(part.layer, p, s, y, i) for p, _, y, s in here]
        return self._rows[key]

    def _edge(self, part: Part, source: Block, target: Block, j: int, i: int) -> Expr | None:
        if part.target.value.size > 100_000:
            return None
        slopes = [float(row[j]) for row in self._row(part, i)]
        here = [(part.params, part.x, part.y, part.saved), *self._at(part)]
        weight = self._parameter(part, [p for p, *_ in here], slopes, source, target, j, i)
        if weight is not None:
            return weight
        values = [(jacobian.flat(x), jacobian.flat(y)) for _, x, y, _ in here]
        if j == i and source.value.size == target.value.size:
            pairs = [(float(x[j]), float(y[i])) for x, y in values]
            names, options = (name(source.neuron(j)), name(target.neuron(i))), OWN
        elif source.value.size == target.value.size:
            pairs = [(float(y[j]), float(y[i])) for _, y in values]
            names, options = (name(target.neuron(j)), name(target.neuron(i))), ACROSS
        else:
            return ONE if _close(slopes, [1.0] * len(slopes)) else None
        for write, compute in options:
            if _close(slopes, [compute(*pair) for pair in pairs]):
                return write(*names)
        return None

    def _parameter(
        self,
        part: Part,
        params: list[Any],
        slopes: list[float],
        source: Block,
        target: Block,
        j: int,
        i: int,
    ) -> Expr | None:
        """`w_lij`, where the derivative is the entry `[from, to]` of one of the part's matrices."""
        if not (source.shape and target.shape):
            return None
        at = (j % source.shape[-1], i % target.shape[-1])
        for leaf, (path, array) in enumerate(jax.tree_util.tree_leaves_with_path(part.params)):
            if np.shape(array) == (source.shape[-1], target.shape[-1]):
                entries = [float(np.asarray(jax.tree.leaves(p)[leaf])[at]) for p in params]
                if _close(slopes, entries):
                    key = str(getattr(path[-1], "key", "w")) if path else "w"
                    return name(notes_name(key, part.number, (at[1] + 1, at[0] + 1)))
        return None

    def _loss(self, block: Block, i: int) -> Expr | None:
        """`∂L/∂ŷ_i`, with `y_i` for the target's entries."""
        if len(jax.tree.leaves(self.graph.y)) != 1 or not block.shape:
            return None
        if not self._slopes:
            self._slopes = self._loss_points(block)
        target = self._target(block)
        if target is None:
            return None
        p, y = name(block.neuron(i)), name(Block("y", None, block.shape, block.value).neuron(i))
        width = block.shape[-1]
        row = slice(i - i % width, i - i % width + width)

        def softmax(v: np.ndarray) -> float:
            e = np.exp(v[row] - np.max(v[row]))
            return float(e[i % width] / e.sum())

        options = [
            (neg(mul(num(2), sub(y, p))), lambda v: -2 * (target[i] - v[i])),
            (sub(call("softmax", p), y), lambda v: softmax(v) - target[i]),
            (sub(call("σ", p), y), lambda v: 1 / (1 + np.exp(-v[i])) - target[i]),
        ]
        slopes = [s[i] for _, s in self._slopes]
        for formula, compute in options:
            if _close(slopes, [float(compute(v)) for v, _ in self._slopes]):
                return formula
        return None

    def _loss_points(self, block: Block) -> list[tuple[np.ndarray, np.ndarray]]:
        graph, random, points = self.graph, np.random.default_rng(11), []
        shape = np.shape(self.prediction)
        for value in [block.value, *(random.uniform(0.1, 0.9, block.value.size) for _ in range(DRAWS))]:
            at = jnp.asarray(value.reshape(shape), self.prediction.dtype)
            points.append((value, jacobian.flat(graph.loss.backward(graph.loss.forward(at, graph.y)[1]))))
        return points

    @property
    def prediction(self) -> Any:
        part = next((p for p in self.graph.parts if p.target is self.graph.prediction), None)
        leaves = jax.tree.leaves(part.y) if part is not None else []
        return leaves[0] if len(leaves) == 1 else jnp.zeros((1, *self.graph.prediction.shape))

    def _target(self, block: Block) -> np.ndarray | None:
        y = jnp.asarray(jax.tree.leaves(self.graph.y)[0])
        if y.size == block.value.size:
            return np.asarray(y, np.float64).reshape(-1)
        if jnp.issubdtype(y.dtype, jnp.integer) and y.size * block.shape[-1] == block.value.size:
            return np.asarray(jax.nn.one_hot(y, block.shape[-1], dtype=jnp.float64)).reshape(-1)
        return None
