"""One example at work in a network: every number that an explanation of it is made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.explain import jacobian, names
from jaxbp.explain.facts import Path, Savings, WeightFacts
from jaxbp.explain.formulas import Formulas
from jaxbp.explain.graph import Block, Graph, Part
from jaxbp.explain.paths import Pass, Start, largest
from jaxbp.explain.symbols import Expr
from jaxbp.explain.wire import build
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree
from jaxbp.losses import Loss
from jaxbp.oracle.autodiff import network_gradient


class Example:
    """A network at work on one example, ready to be asked about any of its weights."""

    def __init__(
        self,
        net: Layer,
        params: PyTree,
        x: Any,
        y: Any,
        loss: Loss,
        mode: Mode | None = None,
        rate: float = 1.0,
    ) -> None:
        if not isinstance(net, Layer):
            raise InputError(f"net: expected a layer, got {type(net).__name__}")
        if not isinstance(loss, Loss):
            raise InputError(f"loss: expected a loss such as SquaredError(), got {loss!r}")
        self.net, self.loss, self.mode = net, loss, Eval() if mode is None else mode
        self.rate = rate  # η, for "one step of gradient descent"
        with jax.enable_x64(True):
            self.params = _wide(params)
            example = _one_example(net, self.params, _wide(x), _wide(y), loss, self.mode)
            self.x, self.y, graph = example
            self._take(graph)

    def why(self, asked: str, k: int = 8, reference: bool = False, formulas: bool = True) -> WeightFacts:
        """The facts about one weight; `reference` also asks `jax.grad` for the same number."""
        if k < 1:
            raise InputError(f"k: expected at least one path to show, got {k}")
        with jax.enable_x64(True):
            return self._facts(names.find(self.graph, asked), k, reference, formulas)

    def names(self) -> list[str]:
        """The names of all weights and biases."""
        return [target.name for target in names.everything(self.graph)]

    def error(self, block: Block) -> np.ndarray:
        """`∂L/∂` every neuron of a block: `δ` where the block is a pre-activation."""
        with jax.enable_x64(True):
            return self.walk.ahead(block).error

    def gradient(self, target: names.Target) -> float:
        """What `net.backward` says about an entry."""
        if target.part is None:
            return float(jacobian.flat(self.dx)[target.index])
        found = names.entry(target, self.grads)
        if found is None:
            raise InputError(f"weight: the network's backward pass has no gradient for {target.path}")
        return found

    def gradient_array(self, prefix: str, slices: tuple[int, ...] = ()) -> np.ndarray:
        """What `net.backward` says about a whole array, by pytree path; `slices` cut a stack's."""
        for path, array in jax.tree_util.tree_leaves_with_path(self.grads):
            if names.tokens(jax.tree_util.keystr(path)) == names.tokens(prefix):
                return np.asarray(array, np.float64)[slices]
        raise InputError(f"weight: the network's backward pass has no gradient for {prefix}")

    def at(self, params: PyTree) -> Example:
        """The same network, example and loss with other parameters."""
        other = copy.copy(self)
        with jax.enable_x64(True):
            other.params = _wide(params)
            graph = build(self.net, other.params, self.x, self.y, self.loss, self.mode)
            for part, same in zip(graph.parts, self.graph.parts, strict=True):
                part.pattern = same.pattern  # which entries are edges does not depend on their values
            other._take(graph)
        return other

    def both(self, params: PyTree) -> tuple[float, PyTree]:
        """The loss and all gradients of this example with other parameters."""
        value, grads, _ = _both_passes(self.net, self.loss)(params, self.x, self.y, self.mode)
        return float(value), grads

    def _take(self, graph: Graph) -> None:
        passes = _both_passes(self.net, self.loss)
        self.graph, self.walk, self.formulas = graph, Pass(graph), Formulas(graph)
        self.value, self.grads, self.dx = passes(self.params, self.x, self.y, self.mode)

    def _facts(self, target: names.Target, k: int, reference: bool, formulas: bool) -> WeightFacts:
        start = self.start(target)
        found = largest(self.walk, start, k)
        count = edges = 0
        total = 0.0
        for block, line, _ in start:
            ahead = self.walk.ahead(block)
            for i, factor in zip(line.indices.tolist(), line.data.tolist(), strict=True):
                count += ahead.count[i]
                edges += ahead.edges[i]
                total += factor * float(ahead.error[i])
        shown = tuple(self._path(target, steps, formulas) for steps in found)
        remainder = total - float(np.sum([p.contribution for p in shown])) if count > len(shown) else 0.0
        once = sum(line.nnz for _, line, _ in start) + self.walk.edges_from(
            [block for block, *_ in start]
        )
        savings = Savings(count, edges, once)
        meets, error = self._two_equations(target, start, shown)
        return WeightFacts(
            weight=target.name,
            path=target.path,
            value=target.value,
            gradient=self.gradient(target),
            total=total,
            loss=self.graph.value,
            paths=shown,
            count=count,
            remainder=remainder,
            savings=savings,
            error=error,
            meets=meets,
            reference=self._reference(target) if reference else None,
            rate=self.rate,
        )

    def start(self, target: names.Target) -> list[Start]:
        """The edges from the weight to the neurons it touches directly."""
        part = target.part
        if part is None:
            leaving = self.graph.leaving(self.graph.input)
            return [(b.target, b.jacobian[[target.index], :], b) for b in leaving]
        touched = [p.touched(target.entry) for p in self.sharing(part)]
        return [(block, line, None) for found in touched for block, line in found]

    def by_part(self, targets: Sequence[names.Target]) -> dict[Part, list[int]]:
        """Which of the weights are parameters of which part."""
        found: dict[Part, list[int]] = {}
        for k, target in enumerate(targets):
            for part in self.sharing(target.part) if target.part is not None else ():
                found.setdefault(part, []).append(k)
        return found

    def learn(self, targets: Sequence[names.Target], shown: Sequence[Sequence[int]]) -> None:
        """Find out at once what many weights touch, and how that is written where neurons are `shown`.

        One by one takes a backward pass for each.
        """
        with jax.enable_x64(True):
            for part, members in self.by_part(targets).items():
                entries = [targets[k].entry for k in members]
                part.learn(entries)
                self.formulas.learn(part, entries, list(self.graph.outputs(part, shown).values()))

    def sharing(self, part: Part) -> list[Part]:
        """The parts that work with this one's parameters: itself, and where it is tied or recurrent."""
        own = (part.address, part.slices)
        return [p for p in self.graph.parts if p.number and (p.address, p.slices) == own]

    def _path(self, target: names.Target, steps: Sequence[Any], formulas: bool) -> Path:
        factors = tuple(step.factor for step in steps)
        nodes = tuple(step.block.neuron(step.index) for step in steps)
        written: list[Expr | None] = []
        before = target.index
        for step in steps if formulas else ():
            if step.bundle is None:
                written.append(self.formulas.weight(target, step.block, step.index))
            else:
                written.append(self.formulas.edge(step.bundle, before, step.index))
            before = step.index
        return Path(nodes, factors, float(np.prod(factors)), tuple(written))

    def _two_equations(self, target: names.Target, start: Any, shown: tuple[Path, ...]) -> Any:
        """`∂L/∂w = δ · h`, where the weight touches a single neuron: `(("h12", h), ("δ21", δ))`."""
        if target.part is None or len(start) != 1 or start[0][1].nnz != 1 or not shown:
            return None, None
        block, line, _ = start[0]
        i = int(line.indices[0])
        symbol = block.neuron(i).replace("a", "δ", 1) if block.letter == "a" else f"∂L/∂{block.neuron(i)}"
        formula = shown[0].formulas[0] if shown[0].formulas else None
        meets = (str(formula), float(line.data[0])) if formula is not None else None
        return meets, (symbol, float(self.walk.ahead(block).error[i]))

    def _reference(self, target: names.Target) -> float | None:
        return network_gradient(
            self.net, self.loss, self.params, self.x, self.y, self.mode, target.path, target.index
        )


def _wide(tree: PyTree) -> PyTree:
    """Real numbers as float64 arrays, integers and keys as they are."""

    def widen(leaf: Any) -> Any:
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        return (
            jnp.asarray(leaf, jnp.float64)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else jnp.asarray(leaf)
        )

    lists = jax.tree.map(
        lambda part: np.asarray(part) if isinstance(part, list) else part,
        tree,
        is_leaf=lambda part: isinstance(part, list),
    )
    return jax.tree.map(widen, lists)


@lru_cache(maxsize=64)
def _both_passes(net: Layer, loss: Loss) -> Any:
    """`fn(params, x, y, mode) -> (value, grads, dx)`, compiled: training's pass, and `x`'s error."""

    @jax.jit
    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode) -> Any:
        prediction, saved = net.forward(params, x, mode)
        value, kept = loss.forward(prediction, y)
        grads, dx = net.backward(params, saved, loss.backward(kept))
        return value, grads, dx

    return fn


def _one_example(net: Layer, params: PyTree, x: PyTree, y: Any, loss: Loss, mode: Mode) -> Any:
    """`(x, y, graph)` with a batch axis of 1 added, or as given where `x` has one already."""

    def made(x: PyTree, y: Any) -> Graph:
        jax.eval_shape(lambda p: net.forward(p, x, mode)[0], params)  # the layers' own words on bad input
        return build(net, params, x, y, loss, mode)

    if not floats_or_ids(x):
        raise InputError("x: expected one example, got nothing in it")
    with_axis = jax.tree.map(lambda leaf: leaf[None], (x, y))
    try:
        return *with_axis, made(*with_axis)
    except (InputError, TypeError, ValueError) as error:
        if not all(leaf.shape[:1] == (1,) for leaf in jax.tree.leaves(x)):
            raise
        try:
            return x, y, made(x, y)
        except (InputError, TypeError, ValueError):
            raise error from None


def floats_or_ids(x: PyTree) -> bool:
    """Whether there is any entry at all."""
    return any(np.size(leaf) for leaf in jax.tree.leaves(x))
