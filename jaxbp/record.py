"""One walk through a network in which everything that passes a layer is kept.

Checks, explanations, tables and conversions are made of it: what went in and came out at every layer,
forwards and backwards, without a layer being known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxbp.layer import Eval, Layer, Mode, Part, PyTree, composed, map_leaves, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Passed:
    """What passed a layer: `y` from `x`, `dx` from `dy`, what `forward` saved, and the gradient."""

    x: PyTree
    y: PyTree
    dy: PyTree
    dx: PyTree
    saved: PyTree
    gradient: PyTree


@dataclass(frozen=True, repr=False)
class Record(Layer):
    """`body`, keeping everything that passes it: the same function, derivatives and parameters.

    The error that it hands to a `gather` is everything that passed; the gather `passed` returns it. It
    works under `jit`, `vmap` and inside `Stack` like any other layer.
    """

    body: Layer

    def init(self, key: Any, x: PyTree) -> PyTree:
        return self.body.init(key, x)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        y, saved = self.body.forward(params, x, mode)
        return y, (x, y, saved)

    def pull(self, params: PyTree, saved: PyTree, dy: PyTree) -> tuple[PyTree, Passed]:
        x, y, kept = saved
        gradient, dx = self.body.backward(params, kept, dy)
        return dx, Passed(x, y, dy, dx, kept, gradient)

    def gradient(self, params: PyTree, saved: PyTree, delta: Passed) -> PyTree:
        return delta.gradient

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        return (Part("body", self.body, params, None if saved is None else saved[2]),)

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return trees[0]


def passed(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> Passed:
    """The `gather` of a recorded network: what passed each layer. Two of them do not add."""
    assert isinstance(delta, Passed), f"{layer} is not recorded"
    return delta


def recorded(net: Layer) -> Layer:
    """The same network with a `Record` around every layer that has no parts of its own."""
    return map_leaves(Record, net, stop=lambda layer: not composed(layer))


def record(
    net: Layer,
    params: PyTree,
    x: PyTree,
    mode: Mode = Eval(),
    error: Callable[[PyTree], PyTree] = lambda y: y,
) -> tuple[PyTree, PyTree]:
    """`(y, gathered)`: both passes once, with a `Passed` for every layer without parts.

    `error(y)` is the error that is sent back. `each_passed` reads the second result.
    """
    same = recorded(net)
    y, saved = same.forward(params, x, mode)
    return y, same.backward(params, saved, error(y), passed)[0]


def each_passed(net: Layer, params: PyTree, gathered: PyTree, apart: bool = False) -> list[Part]:
    """The parts of `walk`, in forward order; what passed each is its `gathered`."""
    return list(walk(net, params, None, gathered, apart=apart))
