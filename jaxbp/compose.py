"""The chain rule: errors are multiplied through along a path, and added up over parallel ones.

`Chain` multiplies along a path, `Residual` and `Branch` add over parallel paths, and `Stack` scans one
body over stacked parameters; `Graph` (`graph.py`) does both in any acyclic network. What adds does so
with `add_errors`, here, in `Graph`, and where `Attention` reads one value twice. Combinators are layers,
so they nest in each other freely; none of them knows a derivative of its own, except those of a merge:
of a sum (1 along every path), of a product (the other factors), and of a concatenation (a slice).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import (
    Eval,
    Gather,
    InputError,
    Layer,
    Mode,
    Part,
    PyTree,
    Static,
    add_errors,
    entries,
    gradient,
    inside,
    output_shape,
    require_parts,
    require_whole,
)
from jaxbp.recompute import Segments, default_unroll, segment_length
from jaxbp.record import Record

__all__ = ["MERGES", "Branch", "Chain", "Merge", "Record", "Residual", "Stack", "Tied", "add_errors"]


def _same_shapes(a: PyTree, b: PyTree) -> bool:
    def describe(t: PyTree) -> Any:
        return [(x.shape, x.dtype) for x in jax.tree.leaves(t)], jax.tree.structure(t)

    return describe(a) == describe(b)


def _shapes(tree: PyTree) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree))


@dataclass(frozen=True, repr=False, init=False)
class Chain(Layer):
    """`y = f_n(… f_2(f_1(x)))`. Parameters: a tuple, one entry a layer. Keeps what the layers keep.

    One path leads through all layers, so the error is multiplied by each layer's Jacobian in turn,
    from the last to the first: `∂L/∂h_{l-1} = (∂h_l/∂h_{l-1})ᵀ ∂L/∂h_l`. Going backwards, each product
    is computed once, although the number of paths grows exponentially with depth.
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer):
        object.__setattr__(self, "layers", _check_layers("Chain", layers))

    def init(self, key: Any, x: PyTree) -> PyTree:
        params = []
        for where, layer, k in chain_row(self, key, lambda chain, k: _keys(k, len(chain.layers))):
            with inside(*where):
                params.append(layer.init(k, x))
                x = output_shape(layer, params[-1], x)
        return chain_nested(self, params)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        def share(chain: Chain, own: tuple[PyTree, Mode]) -> Any:
            require_parts(chain, own[0], len(chain.layers))
            return zip(own[0], own[1].split(len(chain.layers)), strict=True)

        saved = []
        for where, layer, (p, m) in chain_row(self, (params, mode), share):
            with inside(*where):
                x, kept = layer.forward(p, x, m)
            saved.append(kept)
        return x, chain_nested(self, saved)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        gathered = []
        row = list(chain_row(self, (params, saved), lambda _, own: zip(*own, strict=True)))
        for _, layer, (p, s) in reversed(row):
            g, dy = layer.backward(p, s, dy, gather)
            gathered.append(g)
        return chain_nested(self, reversed(gathered)), dy

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        return entries(self, "layers", params, saved)

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return tuple(trees)


def chain_row(
    chain: Chain, own: Any, share: Callable[[Any, Any], Any]
) -> Iterator[tuple[Any, Layer, Any]]:
    """The layers in a row, those of chains in the chain too: `(address, layer, its share of own)`.

    `share(chain, own)` is a chain's own, a share a layer. However deep chains are nested, they are one
    row, and walked in one loop: a call a level would end at Python's limit.
    """
    todo: list[Any] = [((), chain, own)]
    while todo:
        where, layer, own = todo.pop()
        if layer is chain or type(layer) is Chain:
            shares = enumerate(zip(layer.layers, share(layer, own), strict=True))
            todo += reversed([((*where, f"Chain[{i}]"), part, s) for i, (part, s) in shares])
        else:
            yield where, layer, own


def chain_nested(chain: Chain, row: Iterable[Any]) -> tuple[Any, ...]:
    """One value for every layer of `chain_row`, as tuples that are nested as the chains are."""
    values, opened = iter(row), [(chain, list[Any]())]
    while True:
        layer, made = opened[-1]
        if len(made) < len(layer.layers):
            part = layer.layers[len(made)]
            if type(part) is Chain:
                opened.append((part, []))
            else:
                made.append(next(values))
        else:
            opened.pop()
            if not opened:
                return tuple(made)
            opened[-1][1].append(tuple(made))


@dataclass(frozen=True, repr=False, init=False)
class Tied(Chain):
    """A `Chain` whose last layer works with the *first* layer's parameters: `Tied(Embedding, …, Head)`.

    Parameters: a tuple, one entry a layer, the last one empty. Two sets of paths lead from the shared
    weight to the loss, one through each place where it stands, so its gradient is their sum:
    `∂L/∂w = (∂L/∂w)_first + (∂L/∂w)_last`, each term with the other place held
    fixed. The last layer must take parameters of the first one's structure and shapes.

    A `gather` that says how its results add (`adds`, as `gradient` does) gets that sum in the first place
    and nothing in the last; any other gets both back side by side, in the places of the two layers.
    """

    def __init__(self, *layers: Layer):
        super().__init__(*layers)
        if len(layers) < 2:
            raise InputError("Tied: expected at least two layers, a first and a last, got one")

    def init(self, key: Any, x: PyTree) -> PyTree:
        params = super().init(key, x)
        if not _same_shapes(params[0], params[-1]):
            first, last = _shapes(params[0]), _shapes(params[-1])
            raise InputError(
                f"Tied: the first and last layer need parameters of one shape, got {first} and {last}"
            )
        return (*params[:-1], ())

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        return super().forward(self._untied(params), x, mode)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        (first, *rest, last), dx = super().backward(self._untied(params), saved, dy, gather)
        add = getattr(gather or gradient, "add", None)
        if add is None:
            return (first, *rest, last), dx
        try:
            return (add(first, last), *rest, ()), dx
        except (TypeError, ValueError) as error:
            places = f"{self.layers[0]} and {self.layers[-1]}"
            raise InputError(
                f"Tied: what {places} make of their one weight does not add: {error}"
            ) from None

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        *others, last = entries(self, "layers", self._untied(params), saved)
        return (*others, replace(last, at=(0,), shared=True))

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        """What the last layer makes of the first one's parameters has no place of its own."""
        return (*trees[:-1], ())

    def _untied(self, params: PyTree) -> PyTree:
        require_parts(self, params, len(self.layers))
        return (*params[:-1], params[0])


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    """`y = x + f(x)`, with `f = body`. Parameters and saved values are the body's.

    Two paths lead from `x` to `y`: the skip, with derivative 1, and the body. Their errors add:
    `∂L/∂x = ∂L/∂y + (∂f/∂x)ᵀ ∂L/∂y`. Raises `InputError` where `f` changes the shape or dtype.
    """

    body: Layer

    def init(self, key: Any, x: PyTree) -> PyTree:
        with inside("Residual"):
            params = self.body.init(key, x)
            self._check(x, output_shape(self.body, params, x))
        return params

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        with inside("Residual"):
            y, saved = self.body.forward(params, x, mode)
            self._check(x, y)
        return jax.tree.map(jnp.add, x, y), saved

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        gathered, dx = self.body.backward(params, saved, dy, gather)
        return gathered, add_errors(dy, dx)

    def _check(self, x: PyTree, y: PyTree) -> None:
        if not _same_shapes(x, y):
            raise InputError(
                f"the body must return what it takes, {_shapes(x)}, but returns {_shapes(y)}"
            )

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        return (Part("body", self.body, params, saved),)

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return trees[0]


class Merge(NamedTuple):
    """`join(ys) -> (y, saved)` makes parallel outputs one; `part(saved, dy) -> dys` is its pull."""

    join: Callable[[Sequence[Any]], tuple[Any, Any]]
    part: Callable[[Any, Any], Sequence[Any]]


def _join_sum(ys: Sequence[PyTree]) -> tuple[PyTree, PyTree]:
    if not all(_same_shapes(ys[0], y) for y in ys):
        raise InputError(f"merge='sum' needs outputs of one shape, got {'; '.join(map(_shapes, ys))}")
    return jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), *ys), Static(len(ys))


def _require_arrays(merge: str, ys: Sequence[Any]) -> None:
    if not all(hasattr(y, "dtype") for y in ys):
        raise InputError(f"merge={merge!r} needs arrays, got {', '.join(type(y).__name__ for y in ys)}")


def _join_concat(ys: Sequence[Any]) -> tuple[Any, Any]:
    _require_arrays("concat", ys)
    if len({y.shape[:-1] for y in ys}) > 1:
        raise InputError(
            "merge='concat' needs outputs that differ in the last axis only, got "
            + "; ".join(map(_shapes, ys))
        )
    ends = np.cumsum([y.shape[-1] for y in ys])[:-1]
    return jnp.concatenate(ys, axis=-1), Static(tuple(int(end) for end in ends))


def _join_product(ys: Sequence[Any]) -> tuple[Any, Any]:
    _require_arrays("product", ys)
    if not all(_same_shapes(ys[0], y) for y in ys):
        raise InputError(f"merge='product' needs outputs of one shape, got {'; '.join(map(_shapes, ys))}")
    return functools.reduce(jnp.multiply, ys), tuple(ys)


def _part_product(ys: Sequence[Any], dy: Any) -> Sequence[Any]:
    """The product rule `∂L/∂y_k = ∂L/∂y · Π_{j≠k} y_j`, without a division (a factor may be 0)."""
    others = ([*ys[:k], *ys[k + 1 :]] for k in range(len(ys)))
    return [functools.reduce(jnp.multiply, rest, dy) for rest in others]


MERGES: dict[str, Merge] = {
    "sum": Merge(_join_sum, lambda count, dy: (dy,) * count.value),
    "product": Merge(_join_product, _part_product),
    "concat": Merge(_join_concat, lambda ends, dy: jnp.split(dy, ends.value, axis=-1)),
}


@dataclass(frozen=True, repr=False, init=False)
class Branch(Layer):
    """Bodies side by side over the same `x`, merged by `"sum"`, `"product"` or `"concat"`.

    Parameters: a tuple, one entry a body. `x` fans out into every body, so its error is the sum of
    what comes back: `∂L/∂x = Σ_k (∂f_k/∂x)ᵀ ∂L/∂y_k`, where `∂L/∂y_k` is `∂L/∂y` itself for a sum,
    `∂L/∂y · Π_{j≠k} y_j` for a product (the bodies' outputs are kept), and the body's own slice of
    `∂L/∂y` for a concatenation (of the last axis).
    """

    bodies: tuple[Layer, ...]
    merge: str = "sum"

    def __init__(self, *bodies: Layer, merge: str = "sum"):
        if merge not in MERGES:
            raise InputError(f"Branch: merge must be one of {', '.join(MERGES)}, got {merge!r}")
        object.__setattr__(self, "bodies", _check_layers("Branch", bodies))
        object.__setattr__(self, "merge", merge)

    def init(self, key: Any, x: PyTree) -> PyTree:
        params = []
        for i, (body, k) in enumerate(zip(self.bodies, _keys(key, len(self.bodies)), strict=True)):
            with inside(f"Branch[{i}]"):
                params.append(body.init(k, x))
        output_shape(self, tuple(params), x)
        return tuple(params)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        require_parts(self, params, len(self.bodies))
        ys, saved = [], []
        modes = mode.split(len(self.bodies))
        for i, (body, p, m) in enumerate(zip(self.bodies, params, modes, strict=True)):
            with inside(f"Branch[{i}]"):
                y, kept = body.forward(p, x, m)
            ys.append(y)
            saved.append(kept)
        with inside("Branch"):
            y, joined = MERGES[self.merge].join(ys)
        return y, (tuple(saved), joined)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        kept, joined = saved
        dys = MERGES[self.merge].part(joined, dy)
        walks = [
            body.backward(p, s, d, gather)
            for body, p, s, d in zip(self.bodies, params, kept, dys, strict=True)
        ]
        return tuple(g for g, _ in walks), add_errors(*(dx for _, dx in walks))

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        return entries(self, "bodies", params, None if saved is None else saved[0])

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return tuple(trees)


@dataclass(frozen=True, repr=False)
class Stack(Layer):
    """`depth` copies of `body` in a row, each with parameters of its own, run as one `scan`.

    Parameters: the body's, each leaf with a leading axis of length `depth`. The chain rule is that of
    `Chain`, written once: the error is the carry of a scan that runs in reverse. The body is compiled
    once, so compile time does not grow with depth.

    `unroll` puts that many copies in one turn of the loop, for more speed and more to compile; `None`
    leaves it to `default_unroll`, which says what it measured.

    `recompute` keeps less for the walk back, and runs bodies forward once more in it (see `Recompute`):
    `True` keeps what enters each body, an integer `k` what enters every `k`-th (the copies in between
    are recomputed together), and `"sqrt"` is `k ≈ √depth`. Draws and results are the same.

    Raises `InputError` where the body does not return what it takes, and for a `depth`, `unroll` or
    `recompute` out of range.
    """

    body: Layer
    depth: int
    unroll: int | None = None
    recompute: bool | int | str = False

    def __post_init__(self) -> None:
        turns = {} if self.unroll is None else {"unroll": self.unroll}
        require_whole("Stack", depth=self.depth, **turns)
        with inside("Stack"):
            segment_length(self.recompute, self.depth)

    def init(self, key: Any, x: PyTree) -> PyTree:
        def one(k: Any) -> PyTree:
            return self.body.init(k, x)

        with inside("Stack"):
            params = jax.vmap(one)(jax.random.split(key, self.depth))
            y = output_shape(self.body, jax.eval_shape(one, key), x)
            if not _same_shapes(x, y):
                raise InputError(
                    f"the body must return what it takes, {_shapes(x)}, but returns {_shapes(y)}"
                )
        return params

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        def step(h: PyTree, part: Any) -> tuple[PyTree, PyTree]:
            p, m = part
            y, saved = self.body.forward(p, h, m)
            if not _same_shapes(h, y):
                raise InputError(
                    f"the body must return what it takes, {_shapes(h)}, but returns {_shapes(y)}"
                )
            return y, saved

        with inside("Stack"):
            lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(params)}
            if lengths - {(self.depth,)}:
                found = ", ".join(str(*n) or "none" for n in sorted(lengths))
                raise InputError(f"expected params with a leading axis of {self.depth}, got {found}")
            slices = (params, mode.stack(self.depth))
            if self._segments is not None:
                one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), slices)
                jax.eval_shape(step, x, one)  # for its errors
                return self._segments.forward(params, x, slices[1])
            return jax.lax.scan(step, x, slices, length=self.depth, unroll=self._turn)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        if self._segments is not None:
            return self._segments.backward(params, saved, dy, gather)

        def step(d: PyTree, part: Any) -> tuple[PyTree, PyTree]:
            p, s = part
            gathered, dx = self.body.backward(p, s, d, gather)
            return dx, gathered

        dx, gathered = jax.lax.scan(
            step, dy, (params, saved), length=self.depth, reverse=True, unroll=self._turn
        )
        return gathered, dx

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        """The body with all copies' parameters and saved values, along a leading axis.

        What is recomputed has saved nothing that the body would know.
        """
        kept = saved if self._segments is None else None
        return (Part("body", self.body, params, kept, copies=(self.depth,)),)

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return trees[0]

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        if self._segments is not None:
            return self._segments.update_statistics(params, saved)
        return super().update_statistics(params, saved)

    @property
    def _turn(self) -> int:
        """How many copies make one turn of the loop."""
        return default_unroll(self.depth) if self.unroll is None else self.unroll

    @property
    def _segments(self) -> Segments | None:
        length = segment_length(self.recompute, self.depth)
        return None if length is None else Segments(self.body, self.depth, length, self._turn)


def _check_layers(name: str, layers: tuple[Any, ...]) -> tuple[Layer, ...]:
    if not layers:
        raise InputError(f"{name}: expected at least one layer, got none")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            hint = " (did you forget the parentheses?)" if isinstance(layer, type) else ""
            raise InputError(f"{name}: argument {i} is not a layer: {layer!r}{hint}")
    return layers


def _keys(key: Any, count: int) -> Any:
    return jax.random.split(key, count)
