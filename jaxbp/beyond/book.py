"""One walk, kept: what every layer saw and the error that reached it, and what they make together.

The gradient of a layer is linear in its error `δ`, and both its halves have the examples first. So

    Σ_n c_n g_n  =  gradient(params, saved, c δ)            weighted: no second backward pass
    g_n          =  gradient of example n's own rows        gradients
    ‖g_n‖²       =  from products of what was seen and δ    square_norms (`squares.py`)

in every layer at once, for `δ` of a layer is what the walk carried there, whatever lies between it and
the loss. A weight that stands in two places (`Tied`) has the sum of two gradients, and the square of a
sum has a cross term, `2 ⟨g_first, g_last⟩`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.squares import added, cross_terms, square_norms
from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    Part,
    PyTree,
    add_errors,
    is_training,
    leaves,
    rebuild,
    smallest_batch,
    walk,
)
from jaxbp.losses import Loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Book:
    """What a walk kept; see `record`. A pytree: it can be made and used under `jit`.

    The gradient `g_n` of example `n` is that of its own loss. Where `value` is a mean over the examples,
    its `δ` are `1/n` of theirs, and `scale` is `n`; else `scale` is 1.
    """

    params: PyTree
    saved: PyTree
    deltas: PyTree
    value: Float[Array, ""]
    net: Layer = field(metadata={"static": True})
    examples: int = field(metadata={"static": True})
    scale: int = field(metadata={"static": True})

    def square_norms(self) -> Float[Array, "examples"]:
        """`‖g_n‖²` over all trainable parameters, without any `g_n` where a layer has a shorter way."""
        parts = self.parts()
        numbers = [_over_copies(square_norms, part) for part in parts if jax.tree.leaves(part.params)]
        for part in parts:
            if part.shared:
                numbers.append(2 * _over_copies(cross_terms, owner_of(part, parts), part))
        return self.scale**2 * jnp.broadcast_to(added(numbers), (self.examples,))

    def norms(self) -> Float[Array, "examples"]:
        """`‖g_n‖`, the Euclidean norm of every example's gradient."""
        return jnp.sqrt(self.square_norms())

    def layer_square_norms(self) -> dict[str, Float[Array, "examples"]]:
        """`‖g_n‖²` of every layer alone, by its path; a shared weight counts in each of its places."""
        return {
            part.path: self.scale**2 * _over_copies(square_norms, part)
            for part in self.parts()
            if jax.tree.leaves(part.params)
        }

    def weighted(self, c: Float[Array, "examples"]) -> PyTree:
        """`Σ_n c_n g_n`, shaped like the parameters: one product a layer, as in the walk itself."""
        if c.shape != (self.examples,):
            raise InputError(f"weighted: expected {self.examples} weights, got shape {list(c.shape)}")

        def gradient(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
            return layer.gradient(params, saved, _times(self.scale * c, delta))

        return self._assembled(lambda part: mapped(gradient, part))

    def gradients(self) -> PyTree:
        """Every `g_n`, shaped like the parameters with a leading axis of examples. `n` times as large."""
        scale = jnp.full(self.examples, self.scale, jnp.float32)

        def each(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
            if not jax.tree.leaves(params):
                return params
            return layer.gradient_of_each(params, saved, _times(scale, delta))

        def examples_first(part: Part) -> PyTree:
            depth = len(part.copies)
            return jax.tree.map(lambda g: jnp.moveaxis(g, depth, 0), mapped(each, part))

        return self._assembled(examples_first)

    def dots(self, other: Book) -> Float[Array, "examples others"]:
        """`⟨g_n, g'_m⟩` between the examples of two books of one network."""
        if self.net != other.net:
            raise InputError("dots: expected two books of one network")
        pairs = zip(
            *(jax.tree.leaves(book.trainable(book.gradients())) for book in (self, other)), strict=True
        )
        return added([a.reshape(len(a), -1) @ b.reshape(len(b), -1).T for a, b in pairs])

    def parts(self) -> list[Part]:
        """Every layer with its parameters, what it saved, and its `δ` as `gathered`."""
        return parts_of(self.net, self.params, self.saved, self.deltas)

    def trainable(self, tree: PyTree) -> list[Array]:
        """The leaves of a tree like the parameters that belong to trainable ones."""
        mask = self.net.trainable(self.params)
        return [g for g, yes in zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True) if yes]

    def _assembled(self, fn: Callable[[Part], PyTree]) -> PyTree:
        """One tree like the parameters, a shared weight's places added up in that of its owner."""
        parts = self.parts()
        trees = [fn(part) for part in parts]
        for i, part in enumerate(parts):
            if part.shared:
                owner = parts.index(owner_of(part, parts))
                trees[owner] = add_errors(trees[owner], trees[i])
        return rebuild(self.net, self.params, trees)


def record(net: Layer, loss: Loss) -> Callable[..., Book]:
    """`book(params, x, y, mode=Eval()) -> Book`: forward and one walk, keeping `δ` of every layer.

    Raises `InputError` where examples have no gradients of their own: a `BatchNorm` in training (use
    `GroupNorm`, or `Eval()`), a deferred head, and a mean over the labels that are not ignored, in which
    every example's share depends on the others.
    """

    def book(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Book:
        return recorded(net, loss, params, x, y, mode)[0]

    return book


def recorded(
    net: Layer, loss: Loss, params: PyTree, x: PyTree, y: Any, mode: Mode
) -> tuple[Book, PyTree]:
    """`(book, prediction)`: what `record` does."""
    require_separate(net, mode)
    require_own_losses(loss)
    prediction, saved = net.forward(params, x, mode)
    value, kept = loss.forward(prediction, y)
    deltas = walk_back(net, params, saved, loss.backward(kept))
    examples = jax.tree.leaves(prediction)[0].shape[0]
    scale = examples if getattr(loss, "reduction", "sum") == "mean" else 1
    return Book(params, saved, deltas, value, net, examples, scale), prediction


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Again:
    """What a layer saved when it ran a second time, and its error: of a body that keeps nothing else."""

    saved: PyTree
    delta: PyTree


def walk_back(net: Layer, params: PyTree, saved: PyTree, error: PyTree) -> PyTree:
    """One walk that gathers `δ` of every layer; also what layers saw, where `saved` does not have it."""
    dropped = any(part.saved is None for part in walk(net, params, saved))

    def gather(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        return Again(saved, delta) if dropped else delta

    return net.backward(params, saved, error, gather)[0]


def parts_of(net: Layer, params: PyTree, saved: PyTree, gathered: PyTree) -> list[Part]:
    """Every layer with its parameters, what it saved, and its `δ` as `gathered`, after `walk_back`."""

    def whole(part: Part) -> Part:
        again = part.gathered
        if not isinstance(again, Again):
            return part
        kept = again.saved if part.saved is None else part.saved
        return replace(part, saved=kept, gathered=again.delta)

    return [whole(part) for part in walk(net, params, saved, gathered)]


def require_separate(net: Layer, mode: Mode) -> None:
    """Raise `InputError` where one example's prediction depends on the others."""
    if is_training(mode) and smallest_batch(net) > 1:
        raise InputError(
            "in training a BatchNorm makes every example's gradient depend on all the others; "
            "use GroupNorm or LayerNorm, or Eval()"
        )
    require_not_deferred(net)


def require_not_deferred(net: Layer) -> None:
    """Raise `InputError` where a head keeps the error of its examples to itself."""
    if any(getattr(leaf, "deferred", False) for _, leaf in leaves(net)):
        raise InputError("a deferred head has summed over the examples already; use deferred=False")


def require_own_losses(loss: Loss) -> None:
    """Raise `InputError` where one example's share of the value depends on the others."""
    if getattr(loss, "ignore", None) is not None and getattr(loss, "reduction", "") == "mean":
        raise InputError(
            f"{loss}: a mean over the labels that are not ignored gives every example a share that "
            "depends on the others; use reduction='sum'"
        )


def owner_of(part: Part, parts: list[Part]) -> Part:
    """The part whose parameters `part` works with."""
    return next(p for p in parts if p.at == part.at and not p.shared)


def _times(c: Array, delta: PyTree) -> PyTree:
    """`c_n δ_n`: every floating array of an error, example by example."""

    def scaled(d: Array) -> Array:
        if not jnp.issubdtype(d.dtype, jnp.floating):
            return d
        return d * c.astype(d.dtype).reshape(-1, *(1 for _ in d.shape[1:]))

    return jax.tree.map(scaled, delta)


def mapped(fn: Callable[..., Any], part: Part) -> Any:
    """`fn(layer, params, saved, delta)`, over the copies of a stack one after another."""
    arrays = part.params, part.saved, part.gathered
    return each_copy(lambda own: fn(part.layer, *own), arrays, len(part.copies))


def _over_copies(fn: Callable[..., Any], *parts: Part) -> Any:
    """`fn(part, …) -> [examples]`, added up over the copies of a stack."""

    def one(own: Any) -> Any:
        return fn(
            *(replace(p, params=a, saved=s, gathered=g) for p, (a, s, g) in zip(parts, own, strict=True))
        )

    arrays = [(p.params, p.saved, p.gathered) for p in parts]
    depth = len(parts[0].copies)
    return jnp.sum(each_copy(one, arrays, depth), axis=tuple(range(depth)))


def each_copy(fn: Callable[[Any], Any], arrays: Any, depth: int) -> Any:
    if not depth:
        return fn(arrays)
    return jax.lax.map(lambda own: each_copy(fn, own, depth - 1), arrays)
