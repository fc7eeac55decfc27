"""The forward pass of a network, laying out its graph on the way.

A leaf layer leads from the neurons it takes to new ones. Combinators say how that is joined, as their
backward passes say how errors are: a chain puts its layers in a row; a residual, a branch and a graph
lead one value over several ways; a stack is a chain; a recurrence is the same layer at every step. A
combinator that is not listed here is explained as one part, whose derivatives come from its `backward`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array

from jaxbp.compose import MERGES, Branch, Chain, Residual, Stack, Tied
from jaxbp.explain import graph as drawn
from jaxbp.explain import jacobian
from jaxbp.explain.graph import Block, Graph, Run, Wires, cut, joined, whole
from jaxbp.explain.jacobian import Pattern, size
from jaxbp.explain.recurrence import as_steps
from jaxbp.graph import Graph as LayerGraph
from jaxbp.layer import Eval, InputError, Layer, Mode, Part, PyTree
from jaxbp.losses import Loss
from jaxbp.recompute import Recompute

Wired = tuple[PyTree, Wires]  # a value, and the neurons that it is


@dataclasses.dataclass
class Place:
    """Where in the parameters a walk stands: the values, their address, and slices of a stack."""

    params: PyTree
    mode: Mode
    address: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()

    def part(self, part: Part, mode: Mode) -> Place:
        address = (*self.address, *map(str, part.at))
        return Place(part.params, mode, address, self.slices)

    def slice(self, i: int, mode: Mode) -> Place:
        params = jax.tree.map(lambda leaf: leaf[i], self.params)
        return Place(params, mode, self.address, (*self.slices, i))


@dataclasses.dataclass
class Walk:
    """The forward pass; `count` is the number of the last layer with parameters."""

    graph: Graph
    count: int = 0

    def wire(self, layer: Layer, place: Place, x: PyTree, wires: Wires) -> Wired:
        """`(y, its neurons)`. A subclass of a combinator may join differently, so types are exact."""
        return WIRES.get(type(layer), Walk.leaf)(self, layer, place, x, wires)

    def leaf(self, layer: Layer, place: Place, x: PyTree, wires: Wires) -> Wired:
        """A leaf, or a combinator that is not known: edges from its own backward pass."""
        y, saved = jacobian.forward(layer, place.params, x, place.mode)
        steps = as_steps(layer, place.params, x, y, place.mode)
        if steps is not None:
            return y, self.steps(steps, place, wires)
        if jacobian.moves_only(layer, place.params, x, y, place.mode):
            return y, wires
        holds = bool(jax.tree.leaves(place.params))
        self.count += holds
        target = self.graph.add(*(("a", self.count) if holds else self._after(wires)), y)
        pattern = Pattern(layer, place.params, x, place.mode)
        at = (place.address, place.slices, joined(wires), whole(target), target, pattern)
        number = self.count if holds else None
        self.graph.lead_through(drawn.Part(layer, place.params, x, y, saved, place.mode, number, *at))
        return y, whole(target)

    def _after(self, wires: Wires) -> tuple[str, int | None]:
        """The letter and layer of what a layer without parameters makes: `h2` after `a2`."""
        blocks = {(run.block.letter, run.block.layer) for run in wires if run.block is not None}
        if len(blocks) != 1:
            return "s", self.count
        ((letter, layer),) = blocks
        return {"a": "h"}.get(letter, letter + "'"), layer

    def steps(self, steps: Any, place: Place, wires: Wires) -> Wires:
        """A recurrence: the same part at every step, its state handed from one to the next."""
        self.count += 1
        given, taken = steps.cut(wires)
        state = given or (Run(None, 0, steps.state_size),)
        made: dict[int, Wires] = {}
        for t, x, y, saved in steps.turns():
            blocks = [
                self.graph.add(letter, self.count, value, t + 1)
                for letter, value in zip("hc", jax.tree.leaves(y[1]), strict=False)
            ]
            after = tuple(run for block in blocks for run in whole(block))
            hidden = Run(None, 0, size(y[0]))  # the output of a step is its state, and followed as that
            at = (place.address, place.slices, (*state, *taken[t]), (hidden, *after), blocks[0])
            part = (steps.layer, place.params, x, y, saved, place.mode, self.count, *at, steps.pattern)
            self.graph.lead_through(drawn.Part(*part))
            state, made[t] = after, whole(blocks[0])
        every = tuple(run for t in range(len(made)) for run in made[t])
        return (*every, *state) if steps.returns_state else every

    def chain(self, layer: Any, place: Place, x: PyTree, wires: Wires) -> Wired:
        modes = place.mode.split(len(layer.layers))
        for part, mode in zip(layer.parts(place.params), modes, strict=True):
            x, wires = self.wire(part.layer, place.part(part, mode), x, wires)
        return x, wires

    def residual(self, layer: Any, place: Place, x: PyTree, wires: Wires) -> Wired:
        y, body = self.wire(layer.body, place, x, wires)
        y = jax.tree.map(jnp.add, x, y)
        total = self.graph.add("s", self.count, y)
        for runs in (joined(wires), joined(body)):
            self.graph.lead(runs, total, eye_array(size(y)).tocsr())
        return y, whole(total)

    def recompute(self, layer: Any, place: Place, x: PyTree, wires: Wires) -> Wired:
        """What is kept changes no path."""
        return self.wire(layer.body, place, x, wires)

    def branch(self, layer: Any, place: Place, x: PyTree, wires: Wires) -> Wired:
        modes = place.mode.split(len(layer.bodies))
        ends = [
            self.wire(part.layer, place.part(part, mode), x, wires)
            for part, mode in zip(layer.parts(place.params), modes, strict=True)
        ]
        values = [value for value, _ in ends]
        y, here = _merged(layer.merge, values)
        random = np.random.default_rng(0)
        drawn = [jnp.asarray(random.uniform(0.5, 1.5, v.shape), v.dtype) for v in values]
        _, pattern = _merged(layer.merge, drawn)
        total = self.graph.add("s", self.count, y)
        for (_, runs), slopes, there in zip(ends, here, pattern, strict=True):
            at = np.nonzero((slopes != 0) | (there != 0))
            self.graph.lead(joined(runs), total, coo_array((slopes[at], at), slopes.shape).tocsr())
        return y, whole(total)

    def stack(self, layer: Any, place: Place, x: PyTree, wires: Wires) -> Wired:
        modes = place.mode.stack(layer.depth)
        for i in range(layer.depth):
            mode = jax.tree.map(lambda leaf, i=i: leaf[i], modes)
            x, wires = self.wire(layer.body, place.slice(i, mode), x, wires)
        return x, wires

    def layers(self, layer: Any, place: Place, x: PyTree, wires: Wires) -> Wired:
        """A `Graph` of layers: every value keeps its neurons, whoever reads it."""
        known: dict[str, Wired] = {}
        if isinstance(layer.inputs, str):
            known[layer.inputs] = x, wires
        else:
            pieces = cut(wires, [size(value) for value in x])
            known.update(zip(layer.inputs, zip(x, pieces, strict=True), strict=True))
        modes = place.mode.split(len(layer.layers))
        parts = zip(layer.names, layer.parts(place.params), layer.sources, modes, strict=True)
        for name, part, sources, mode in parts:
            known[name] = self.wire(part.layer, place.part(part, mode), *_read(known, sources))
        return _read(known, layer.outputs)


def _read(known: dict[str, Wired], names: str | tuple[str, ...]) -> Wired:
    if isinstance(names, str):
        return known[names]
    return tuple(known[n][0] for n in names), tuple(run for n in names for run in known[n][1])


def _merged(merge: str, values: list[Any]) -> tuple[Any, list[np.ndarray]]:
    """What a branch's merge makes of `values`, and `[from, to]` derivatives by each of them."""
    y, saved = MERGES[merge].join(values)
    units = jnp.eye(y.size, dtype=y.dtype).reshape(-1, *y.shape)
    pulled = jax.vmap(lambda u: tuple(MERGES[merge].part(saved, u)))(units)
    return y, [np.asarray(rows, np.float64).reshape(y.size, -1).T for rows in pulled]


WIRES: dict[type[Layer], Any] = {
    Chain: Walk.chain,
    Tied: Walk.chain,
    Residual: Walk.residual,
    Branch: Walk.branch,
    Stack: Walk.stack,
    Recompute: Walk.recompute,
    LayerGraph: Walk.layers,
}


def build(net: Layer, params: PyTree, x: PyTree, y: Any, loss: Loss, mode: Mode = Eval()) -> Graph:
    """The graph of one forward pass in float64 (call with 64-bit values enabled)."""
    graph = Graph(net, loss, params, x, y, mode)
    start = graph.add("x", None, x)
    graph.predicted, wires = Walk(graph).wire(net, Place(params, mode), x, whole(start))
    wires = joined(wires)
    if all(run.block in (start, None) for run in wires):
        raise InputError(f"{net}: expected a network with a layer that computes, got one that only moves")
    _name_prediction(graph, wires)
    value, saved = loss.forward(graph.predicted, y)
    graph.value = float(value)
    slopes = jacobian.flat(loss.backward(saved))
    end = Block("L", None, (), np.asarray([graph.value]))
    graph.blocks.append(end)
    for number, each in enumerate(graph.blocks):
        each.number = number
    column = (slopes, np.zeros(slopes.size, int), np.arange(slopes.size + 1))
    graph.lead(wires, end, csr_array(column, shape=(slopes.size, 1)))
    return graph


def _name_prediction(graph: Graph, wires: Iterable[Run]) -> None:
    """The prediction stands last, and is called `ŷ` unless it is a pre-activation."""
    (block, start, stop), *more = wires
    if more or block is None or (start, stop) != (0, block.value.size):
        return
    graph.blocks.remove(block)
    graph.blocks.append(block)
    if block.letter.rstrip("'") != "a" and block.time is None:
        block.letter, block.layer = "ŷ", None
