"""Memory for time: keep what goes into a layer, and run it forward again when the error arrives.

A walk back needs what every layer saved, all of it alive at the end of the forward pass. Of a network of
`n` like layers that keep `s` each and take inputs of `x` each, these are alive at the worst moment:

    as it is                        n s
    every layer recomputed          n x + s           keep the inputs; one layer's savings at a time
    segments of k recomputed        (n / k) x + k s   keep the input of every k-th; k savings at a time
    k = √n                          √n (x + s)        least where x and s are of one size

and the forward pass is computed once more. Nothing else changes: `pull` and `gradient` meet the very
numbers that the first forward pass made. Source: Chen et al. 2016, "Training deep nets with sublinear
memory cost".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.layer import Eval, Gather, InputError, Layer, Mode, Part, PyTree, inside


@dataclass(frozen=True, repr=False)
class Recompute(Layer):
    """`y = f(x)`, with `f = body`, that keeps `x` alone. Parameters are the body's.

    The chain rule goes through `f` as before; only when it does is new:

        forward     y, s = f(x)          s is dropped
        backward    _, s = f(x)          again, then ∂L/∂x, ∂L/∂w of the body from s and ∂L/∂y

    Keeps `x`, the mode (so that a `Dropout` draws the same mask twice) and the running statistics that
    the batch leads to (a `BatchNorm` inside could not make them of `x` once the weights have moved),
    which are as small as parameters. Draws, gradients and statistics are those of the body itself.

    Under `jit`, what is computed twice would be found out and computed once, and everything kept after
    all: a barrier ties the second forward pass to the error that arrives. XLA for CPUs takes barriers
    out before it looks, so there it is inside a loop only (a `Stack`) that memory falls.

    Raises `InputError` where the body is not a layer, and whatever the body raises.
    """

    body: Layer

    def __post_init__(self) -> None:
        if not isinstance(self.body, Layer):
            raise InputError(f"Recompute: expected a layer, got {self.body!r}")

    def init(self, key: Any, x: PyTree) -> PyTree:
        with inside("Recompute"):
            return self.body.init(key, x)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        with inside("Recompute"):
            y, saved = self.body.forward(params, x, mode)
        learns = jax.tree.leaves(self.body.trainable(params))
        if all(learns):
            return y, (x, mode, ())
        moved = jax.tree.leaves(self.body.update_statistics(params, saved))
        statistics = tuple(leaf for leaf, yes in zip(moved, learns, strict=True) if not yes)
        return y, (x, mode, statistics)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        (x, mode, _) = saved
        x, dy = jax.lax.optimization_barrier((x, dy))
        _, again = self.body.forward(params, x, mode)
        return self.body.backward(params, again, dy, gather)

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        """The body; nothing that it would know is saved."""
        return (Part("body", self.body, params),)

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return trees[0]

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        statistics, learns = iter(saved[2]), jax.tree.leaves(self.body.trainable(params))
        new = [p if yes else next(statistics) for p, yes in zip(leaves, learns, strict=True)]
        return jax.tree.unflatten(structure, new)


@dataclass(frozen=True, repr=False)
class Row(Layer):
    """`length` copies of `body` in a row, each with its slice of the parameters and of the *mode*.

    What a `Stack` is made of, and a segment of one: the modes are handed in already split, so that a
    stack draws the same whatever its segments are.
    """

    body: Layer
    length: int
    unroll: int = 1

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        def step(h: PyTree, part: Any) -> tuple[PyTree, PyTree]:
            p, m = part
            return self.body.forward(p, h, m)

        return jax.lax.scan(step, x, (params, mode), length=self.length, unroll=self.unroll)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        def step(d: PyTree, part: Any) -> tuple[PyTree, PyTree]:
            p, s = part
            gathered, dx = self.body.backward(p, s, d, gather)
            return dx, gathered

        dx, gathered = jax.lax.scan(
            step, dy, (params, saved), length=self.length, reverse=True, unroll=self.unroll
        )
        return gathered, dx

    def trainable(self, params: PyTree) -> PyTree:
        return self.body.trainable(params)

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        return jax.vmap(self.body.update_statistics)(params, saved)


@dataclass(frozen=True, repr=False)
class Segments(Layer):
    """`depth` copies of `body` in a row, recomputed `length` at a time; the last segment may be shorter.

    A row of recomputed rows: `Row(Recompute(Row(body)))`. Parameters and modes have a leading axis of
    `depth`, which is cut into segments and back; saved is a pair, of the segments and of the rest.
    """

    body: Layer
    depth: int
    length: int
    unroll: int = 1

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        (p, p_rest), (m, m_rest) = self._cut(params), self._cut(mode)
        x, saved = self._whole.forward(p, x, m)
        if self._rest is None:
            return x, (saved, ())
        x, last = self._rest.forward(p_rest, x, m_rest)
        return x, (saved, last)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        (p, p_rest), (kept, last), rest = self._cut(params), saved, None
        if self._rest is not None:
            rest, dy = self._rest.backward(p_rest, last, dy, gather)
        gathered, dx = self._whole.backward(p, kept, dy, gather)
        return self._join(gathered, rest), dx

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        (p, p_rest), (kept, last) = self._cut(params), saved
        rest = None if self._rest is None else self._rest.update_statistics(p_rest, last)
        return self._join(self._whole.update_statistics(p, kept), rest)

    @property
    def _whole(self) -> Row:
        if self.length == 1:
            return Row(Recompute(self.body), self.depth, self.unroll)
        segment = Row(self.body, self.length, min(self.unroll, self.length))
        return Row(Recompute(segment), self.depth // self.length, max(self.unroll // self.length, 1))

    @property
    def _rest(self) -> Recompute | None:
        rest = self.depth % self.length
        return Recompute(Row(self.body, rest, min(self.unroll, rest))) if rest else None

    def _cut(self, tree: PyTree) -> tuple[PyTree, PyTree]:
        if self.length == 1:
            return tree, None
        return _cut(tree, self.depth // self.length, self.length)

    def _join(self, head: PyTree, tail: PyTree | None) -> PyTree:
        return head if self.length == 1 else _join(head, tail)


def segment_length(recompute: bool | int | str, depth: int) -> int | None:
    """How many layers of a stack are recomputed together; `None` for no recomputation.

    For `"sqrt"` the divisor of `depth` next to `√depth`, or `√depth` itself, rounded, where every divisor
    is further off than a factor of 2: a shorter last segment costs a copy of the parameters.
    """
    if isinstance(recompute, bool):
        return 1 if recompute else None
    if recompute == "sqrt":
        root = math.sqrt(depth)
        divisors = [k for k in range(1, depth + 1) if depth % k == 0]
        best = min(divisors, key=lambda k: abs(math.log(k / root)))
        return best if abs(math.log(best / root)) <= math.log(2) else round(root)
    if not isinstance(recompute, int) or not 1 <= recompute <= depth:
        raise InputError(
            f"recompute must be a bool, 'sqrt' or a number of layers in 1 … {depth}, got {recompute!r}"
        )
    return recompute


def default_unroll(depth: int, platform: str | None = None) -> int:
    """How many layers of a stack make one turn of its loop where nothing is said.

    On a CPU 1: a turn costs nothing beside its products, and compile time does not grow. On anything
    else up to 12: a loop copies the slices of parameters and of what is kept, which straight code does
    not. Measured: a step of GPT-2 (124M, bfloat16, 16 × 1024 tokens) on an H100 takes 57.8 ms in a loop
    and 49.2 ms unrolled 12. It costs compile time: the two passes of a small `gpt` of depth 12 take 2.1 s
    to compile in a loop and 7.6 s unrolled 12 (two CPU cores).
    """
    return 1 if (platform or jax.default_backend()) == "cpu" else min(depth, 12)


def _cut(tree: PyTree, count: int, length: int) -> tuple[PyTree, PyTree]:
    """`([count, length, …], [rest, …])` of leaves `[count · length + rest, …]`."""
    whole = count * length
    head = jax.tree.map(lambda a: a[:whole].reshape(count, length, *a.shape[1:]), tree)
    return head, jax.tree.map(lambda a: a[whole:], tree)


def _join(head: PyTree, tail: PyTree | None) -> PyTree:
    """The way back: `[count, length, …]` and `[rest, …]`, if any, one after another."""
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), head)
    if tail is None:
        return flat
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), flat, tail)
