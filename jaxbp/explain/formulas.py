"""How to write a local derivative: found by trying formulas on the numbers, never by a layer's name.

A layer's own `pull` says what `∂y_i/∂x_j` is, at this point and at points drawn at random. A formula
from the short lists below is shown for it when it gives those numbers at every one of them; when none
does, the derivative keeps its symbol `∂y_i/∂x_j` and its number. So a layer that somebody adds gets its
formulas without a line here, and a formula can never be shown that the numbers contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.explain import jacobian
from jaxbp.explain.graph import Block, Bundle, Graph, Part, neuron
from jaxbp.explain.jacobian import Entry
from jaxbp.explain.names import Target, notes_name, ordered
from jaxbp.explain.symbols import ONE, Expr, call, div, exp, mul, name, neg, num, power, step, sub

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
    _met: dict[tuple[int, Entry, int], list[float]] = field(default_factory=dict)
    _found: dict[Any, Expr | None] = field(default_factory=dict)
    _slopes: list[Any] = field(default_factory=list)

    def edge(self, bundle: Bundle, j: int, i: int) -> Expr | None:
        """`∂target_i/∂source_j` as a formula, or `None`."""
        key = (id(bundle), j, i)
        if key not in self._found:
            if bundle.target is self.graph.end:
                self._found[key] = self._loss(bundle.source, j)
            elif bundle.part is None:
                self._found[key] = ONE if bundle.jacobian[j, i] == 1 else None
            else:
                self._found[key] = self._edge(bundle, bundle.part, j, i)
        return self._found[key]

    def weight(self, target: Target, block: Block, i: int) -> Expr | None:
        """`∂block_i/∂w` as a formula: the input neuron that the weight meets, or 1."""
        part = self.graph.maker(block)
        if part is None or jacobian.size(part.x) > 100_000 or jacobian.size(part.y) > 4096:
            return None
        output = part.output(block, i)
        if output is None:
            return None
        self.learn(part, [target.entry], [output])
        rows, here = self._met[part.target.number, target.entry, output], self._here(part)
        if _close(rows, [1.0] * len(rows)):
            return ONE
        inputs = np.stack([jacobian.flat(x) for _, x, _, _ in here])
        same = np.flatnonzero(np.all(np.isclose(inputs, np.asarray(rows)[:, None], rtol=1e-12), axis=0))
        met = neuron(part.inputs, int(same[0])) if same.size == 1 else None
        return None if met is None else name(met)

    def learn(self, part: Part, entries: Sequence[Entry], outputs: Sequence[int]) -> None:
        """Find out at once `∂output/∂w` at all points, for some of a part's parameters and outputs."""
        number = part.target.number
        if not outputs or all((number, e, o) in self._met for e in entries for o in outputs):
            return
        found = [
            jacobian.touches(part.layer, p, s, y, entries, outputs).tolist()
            for p, _, y, s in self._here(part)
        ]
        for k, output in enumerate(outputs):
            for n, entry in enumerate(entries):
                self._met[number, entry, output] = [rows[k][n] for rows in found]

    def _here(self, part: Part) -> list[Point]:
        """The part where it stands, and at the points drawn."""
        return [(part.params, part.x, part.y, part.saved), *self._at(part)]

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
            self._rows[key] = [jacobian.row(part.layer, p, s, y, i) for p, _, y, s in self._here(part)]
        return self._rows[key]

    def _edge(self, bundle: Bundle, part: Part, j: int, i: int) -> Expr | None:
        if jacobian.size(part.y) > 100_000:
            return None
        at, out = bundle.inside(j, i)
        slopes, here = [float(row[at]) for row in self._row(part, out)], self._here(part)
        weight = self._parameter(part, [p for p, *_ in here], slopes, at, out)
        if weight is not None:
            return weight
        if jacobian.size(part.x) != jacobian.size(part.y):
            return ONE if _close(slopes, [1.0] * len(slopes)) else None
        values = [(jacobian.flat(x), jacobian.flat(y)) for _, x, y, _ in here]
        own = at == out
        pairs = [(float(x[at] if own else y[at]), float(y[out])) for x, y in values]
        other = bundle.source.neuron(j) if own else neuron(part.outputs, at)
        if other is None:
            return None
        names, options = (name(other), name(bundle.target.neuron(i))), OWN if own else ACROSS
        for write, compute in options:
            if _close(slopes, [compute(*pair) for pair in pairs]):
                return write(*names)
        return None

    def _parameter(
        self, part: Part, params: list[Any], slopes: list[float], at: int, out: int
    ) -> Expr | None:
        """`w_lij`, where the derivative is an entry `[…, from, to]` of one of the part's arrays.

        In front of that stands where in a window the entry is, and a group has its own `from`.
        """
        x, y = jacobian.floats(part.x), jacobian.floats(part.y)
        if len(x) != 1 or len(y) != 1 or not (x[0].shape and y[0].shape):
            return None
        taken, made = x[0].shape[-1], y[0].shape[-1]
        for leaf, (path, array) in enumerate(jax.tree_util.tree_leaves_with_path(part.params)):
            shape = np.shape(array)
            matrix, window = len(shape) == 2 and shape[0] == taken, len(shape) > 2
            if not (matrix or window) or shape[-1] != made or taken % shape[-2]:
                continue
            inside = (at % taken % shape[-2], out % made)
            entries = [np.asarray(jax.tree.leaves(p)[leaf])[(..., *inside)] for p in params]
            fits = [w for w in np.ndindex(*shape[:-2]) if _close(slopes, [float(e[w]) for e in entries])]
            if len(fits) == 1:
                key = str(getattr(path[-1], "key", "w")) if path else "w"
                return name(notes_name(key, part.number, ordered((*fits[0], *inside))))
        return None

    def _loss(self, block: Block, i: int) -> Expr | None:
        """`∂L/∂ŷ_i`, with `y_i` for the target's entries."""
        if block is not self.graph.prediction or len(jax.tree.leaves(self.graph.y)) != 1:
            return None
        if not block.shape or len(jacobian.floats(self.graph.predicted)) != 1:
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
        slopes = np.array([s[i] for _, s in self._slopes])
        for count in {1, block.value.size // width}:  # summed, or a mean over the places
            for formula, compute in options:
                if _close(slopes * count, [float(compute(v)) for v, _ in self._slopes]):
                    return formula if count == 1 else div(formula, num(count))
        return None

    def _loss_points(self, block: Block) -> list[tuple[np.ndarray, np.ndarray]]:
        graph, random, points = self.graph, np.random.default_rng(11), []
        (like,) = jacobian.floats(graph.predicted)
        for value in [block.value, *(random.uniform(0.1, 0.9, block.value.size) for _ in range(DRAWS))]:
            at = jnp.asarray(value.reshape(like.shape), like.dtype)
            points.append((value, jacobian.flat(graph.loss.backward(graph.loss.forward(at, graph.y)[1]))))
        return points

    def _target(self, block: Block) -> np.ndarray | None:
        y = jnp.asarray(jax.tree.leaves(self.graph.y)[0])
        if y.size == block.value.size:
            return np.asarray(y, np.float64).reshape(-1)
        if jnp.issubdtype(y.dtype, jnp.integer) and y.size * block.shape[-1] == block.value.size:
            return np.asarray(jax.nn.one_hot(y, block.shape[-1], dtype=jnp.float64)).reshape(-1)
        return None
