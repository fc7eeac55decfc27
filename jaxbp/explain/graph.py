"""A network as a graph of neurons, whose edges carry local derivatives.

Neurons stand in *blocks*, one for every value in the forward pass; a leaf layer is an edge bundle from
the block it takes to the block it makes. Combinators say how bundles are joined (`wire`, below): a
chain puts them in a row, a residual and a branch put them side by side. A combinator that is not
listed here is explained as one block, whose derivatives come from its own `backward`.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array

from jaxbp import compose
from jaxbp.compose import MERGES, Branch, Chain, Residual, Stack
from jaxbp.explain import jacobian
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree
from jaxbp.losses import Loss


@dataclasses.dataclass(eq=False)
class Block:
    """The neurons of one value. `layer` is the number of the weight layer it belongs to, 0 = input."""

    letter: str
    layer: int | None
    shape: tuple[int, ...]
    value: np.ndarray
    number: int = 0

    @property
    def name(self) -> str:
        """`a2` for the block of `a21`, `a22`, …"""
        stem = self.letter.rstrip("'")
        shown = "" if self.layer is None else str(self.layer)
        return stem + shown + self.letter[len(stem) :]

    def neuron(self, i: int) -> str:
        """`a21`, or `a2_13` where an index has two digits, or `a2_3_1_4` in a block of more axes."""
        if not self.shape:
            return self.name
        index = [str(k + 1) for k in np.unravel_index(i, self.shape)]
        plain = len(index) == 1 and (self.layer is None or (len(index[0]) == 1 and self.layer < 10))
        stem = self.name
        return stem + index[0] if plain and "'" not in stem else "_".join([stem, *index])


@dataclasses.dataclass(eq=False)
class Bundle:
    """All edges from block `source` to block `target`; `jacobian[j, i] = ∂target_i/∂source_j`."""

    source: Block
    target: Block
    part: Part | None
    _found: csr_array | None = None

    @property
    def jacobian(self) -> csr_array:
        """Computed when first asked for: what lies before the weight at hand is never needed."""
        if self._found is None:
            assert self.part is not None
            self._found = self.part.edges()
        return self._found


@dataclasses.dataclass(eq=False)
class Part:
    """A leaf (or an unknown combinator) at work: all that its local derivatives are made from."""

    layer: Layer
    params: PyTree
    x: PyTree
    y: PyTree
    saved: PyTree
    mode: Mode
    number: int | None
    address: tuple[str, ...]
    slices: tuple[int, ...]
    source: Block
    target: Block

    @cached_property
    def drawn(self) -> list[Any]:
        """Points drawn at random, at which an edge shows whether it is one."""
        return jacobian.points(self.layer, self.params, self.x, self.mode)

    def edges(self) -> csr_array:
        """The edges through the part, with their derivatives."""
        return jacobian.edges(self.layer, self.params, self.x, self.y, self.saved, self.drawn)

    def touched(self, leaf: int, index: int) -> csr_array:
        """The edges from one of the part's parameters to the neurons that it touches directly."""
        return jacobian.touched(self.layer, self.params, self.y, self.saved, self.drawn, leaf, index)


class Web:
    """Blocks in forward order, the last of them a single neuron, and the bundles between them."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._leaving: dict[int, list[Bundle]] = {}

    @property
    def end(self) -> Block:
        """What is differentiated: the loss, a block of one."""
        return self.blocks[-1]

    def connect(self, bundle: Bundle) -> None:
        self._leaving.setdefault(id(bundle.source), []).append(bundle)

    def leaving(self, block: Block) -> list[Bundle]:
        return self._leaving.get(id(block), [])


@dataclasses.dataclass(eq=False)
class Graph(Web):
    """A network at work on one example, and its parts in forward order."""

    net: Layer
    loss: Loss
    params: PyTree
    x: PyTree
    y: Any
    mode: Mode
    parts: list[Part] = dataclasses.field(default_factory=list)
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def input(self) -> Block:
        return self.blocks[0]

    @property
    def prediction(self) -> Block:
        return self.blocks[-2]

    def add(self, letter: str, layer: int | None, value: PyTree) -> Block:
        """A new block; primes are added to the letter until the name is its own."""
        names = {block.name for block in self.blocks}
        shapes = [jnp.shape(leaf) for leaf in jacobian.floats(value)]
        shape = shapes[0] if len(shapes) == 1 else (jacobian.size(value),)
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        block = Block(letter, layer, shape, jacobian.flat(value), len(self.blocks))
        while block.name in names:
            block.letter += "'"
        self.blocks.append(block)
        return block


@dataclasses.dataclass
class Walk:
    """The forward pass, laying out the graph on its way."""

    graph: Graph
    mode: Mode
    count: int = 0

    def wire(self, layer: Layer, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        """`(y, block of y)`. A subclass of a combinator may join differently, so types are exact."""
        return WIRES.get(type(layer), Walk.leaf)(self, layer, place, x, block)

    def leaf(self, layer: Layer, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        """A leaf, or a combinator that is not known: one bundle of edges, from its own backward."""
        y, saved = jacobian._forward(layer, place.params, x, place.mode)
        if jacobian.moves_only(layer, place.params, x, y, place.mode):
            return y, block
        holds = bool(jax.tree.leaves(place.params))
        if holds:
            self.count += 1
            target = self.graph.add("a", self.count, y)
        else:
            letter = {"a": "h"}.get(block.letter, block.letter + "'")
            target = self.graph.add(letter, block.layer, y)
        number = self.count if holds else None
        at = (place.address, place.slices, block, target)
        part = Part(layer, place.params, x, y, saved, place.mode, number, *at)
        self.graph.parts.append(part)
        self.graph.connect(Bundle(block, target, part))
        return y, target

    def chain(self, layer: Any, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        modes = place.mode.split(len(layer.layers))
        for i, (part, mode) in enumerate(zip(layer.layers, modes, strict=True)):
            x, block = self.wire(part, place.item(i, mode), x, block)
        return x, block

    def tied(self, layer: Any, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        """A chain whose last layer works with the first one's parameters: two places, one weight."""
        modes = place.mode.split(len(layer.layers))
        for i, (part, mode) in enumerate(zip(layer.layers, modes, strict=True)):
            at = place.item(0 if i == len(layer.layers) - 1 else i, mode)
            x, block = self.wire(part, at, x, block)
        return x, block

    def residual(self, layer: Any, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        y, body = self.wire(layer.body, place, x, block)
        y = jax.tree.map(jnp.add, x, y)
        total = self.graph.add("s", self.count, y)
        for source in (block, body):
            self.graph.connect(Bundle(source, total, None, eye_array(body.value.size).tocsr()))
        return y, total

    def branch(self, layer: Any, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        modes = place.mode.split(len(layer.bodies))
        ends = [
            self.wire(body, place.item(i, mode), x, block)
            for i, (body, mode) in enumerate(zip(layer.bodies, modes, strict=True))
        ]
        values = [value for value, _ in ends]
        y, here = self._merged(layer.merge, values)
        random = np.random.default_rng(0)
        drawn = [jnp.asarray(random.uniform(0.5, 1.5, v.shape), v.dtype) for v in values]
        _, pattern = self._merged(layer.merge, drawn)
        total = self.graph.add("s", self.count, y)
        for (_, source), slopes, there in zip(ends, here, pattern, strict=True):
            rows, columns = np.nonzero((slopes != 0) | (there != 0))
            matrix = coo_array((slopes[rows, columns], (rows, columns)), slopes.shape).tocsr()
            self.graph.connect(Bundle(source, total, None, matrix))
        return y, total

    def _merged(self, merge: str, values: list[Any]) -> tuple[Any, list[np.ndarray]]:
        """What a branch's merge makes of `values`, and `[from, to]` derivatives by each of them."""
        y, joined = MERGES[merge].join(values)
        units = jnp.eye(y.size, dtype=y.dtype).reshape(-1, *y.shape)
        pulled = jax.vmap(lambda u: tuple(MERGES[merge].part(joined, u)))(units)
        return y, [np.asarray(rows, np.float64).reshape(y.size, -1).T for rows in pulled]

    def stack(self, layer: Any, place: Place, x: PyTree, block: Block) -> tuple[PyTree, Block]:
        modes = place.mode.stack(layer.depth)
        for i in range(layer.depth):
            mode = jax.tree.map(lambda leaf, i=i: leaf[i], modes)
            x, block = self.wire(layer.body, place.slice(i, mode), x, block)
        return x, block


@dataclasses.dataclass
class Place:
    """Where in the parameters a walk stands: the values, their address, and slices of a stack."""

    params: PyTree
    mode: Mode
    address: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()

    def item(self, i: int, mode: Mode) -> Place:
        return Place(self.params[i], mode, (*self.address, str(i)), self.slices)

    def slice(self, i: int, mode: Mode) -> Place:
        params = jax.tree.map(lambda leaf: leaf[i], self.params)
        return Place(params, mode, self.address, (*self.slices, i))


WIRES: dict[type[Layer], Any] = {
    Chain: Walk.chain,
    Residual: Walk.residual,
    Branch: Walk.branch,
    Stack: Walk.stack,
}
if hasattr(compose, "Tied"):
    WIRES[compose.Tied] = Walk.tied  # pyright: ignore[reportAttributeAccessIssue]


def build(net: Layer, params: PyTree, x: PyTree, y: Any, loss: Loss, mode: Mode = Eval()) -> Graph:
    """The graph of one forward pass in float64 (call with 64-bit values enabled)."""
    graph = Graph(net, loss, params, x, y, mode)
    prediction, block = Walk(graph, mode).wire(net, Place(params, mode), x, graph.add("x", None, x))
    if block is graph.input:
        raise InputError(f"{net}: expected a network with a layer that computes, got one that only moves")
    if block is not graph.blocks[-1]:
        graph.blocks.remove(block)
        graph.blocks.append(block)
    if block.letter.rstrip("'") not in ("a",):
        block.letter, block.layer = "ŷ", None
    value, saved = loss.forward(prediction, y)
    graph.value = float(value)
    slopes = jacobian.flat(loss.backward(saved))
    end = Block("L", None, (), np.asarray([graph.value]))
    graph.blocks.append(end)
    for number, each in enumerate(graph.blocks):
        each.number = number
    edges = csr_array(
        (slopes, np.zeros(slopes.size, int), np.arange(slopes.size + 1)), shape=(slopes.size, 1)
    )
    graph.connect(Bundle(block, end, None, edges))
    return graph
