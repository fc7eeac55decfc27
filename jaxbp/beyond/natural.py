"""KFAC: steps along the natural gradient, by Kronecker factors, as an Optax transformation.

A Gauss-Newton step is `Δ = (G + λ I)⁻¹ ∇L`. With `G` in blocks, one a layer, and a block of the form
`A ⊗ B` (`curvature.py`), a block's part of the step is two products with small matrices:

    (A ⊗ B)⁻¹ vec(∇) = vec(A⁻¹ ∇ B⁻¹)                     ∇: [i, o], A: [i, i], B: [o, o]

Parameters that meet the same error are one product, `[x 1]ᵀ δ` of a `Dense`, `[x h 1]ᵀ δ` of an LSTM, so
a weight and its bias are in one block. Damping keeps such a block no product, unless it is shared out:

    split    A ⊗ B + λ I  ≈  (A + π √λ I) ⊗ (B + √λ/π I)      π² = (tr A / i) / (tr B / o)
    exact    A ⊗ B + λ I  =  (V ⊗ W) (a ⊗ b + λ) (V ⊗ W)ᵀ     of the eigenvectors and values of A and B

The first is two inverses (Cholesky), the second two eigendecompositions, with which the step is exactly
`(A ⊗ B + λ I)⁻¹ ∇`. Of a table of rows, `A` is a diagonal. A parameter that is no product (a shared
weight, one of a layer that does not say) has the diagonal of `G`: `Δ = ∇ / (d + λ)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxbp.beyond.book import mapped, parts_of, require_not_deferred, walk_back
from jaxbp.beyond.curvature import COLUMNS, over_columns, require_kind, single_column, squares_of
from jaxbp.beyond.outer import Measure, in_pieces, means, outer_products, row_products
from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Part,
    PyTree,
    Train,
    rebuild,
    require_positive,
    require_whole,
    walk,
)
from jaxbp.losses import Loss

Blocks = tuple[dict[str, Any], ...]
"""Of every part of a network: a `Pair` of what is one product, `"w+b"`, and else a diagonal."""


class Pair(NamedTuple):
    """`A` and `B` of a block, or their inverses."""

    left: Array
    right: Array


class KFACState(NamedTuple):
    """Steps taken; running means of `A`, `B` and diagonals; what was last made of them."""

    steps: Array
    curvature: Blocks
    inverses: Blocks


def kfac(
    net: Layer, loss: Loss, x: PyTree, learning_rate: Any, momentum: float = 0.9, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """`w := w - η (momentum of) Δ`, with `Δ` of `scale_by_kfac(net, loss, x, **options)`.

    `learning_rate` is a number or an Optax schedule. A whole optimizer, for `make_step` and `make_epoch`.
    """
    parts = [scale_by_kfac(net, loss, x, **options)]
    parts += [optax.trace(momentum)] if momentum else []
    return optax.with_extra_args_support(optax.chain(*parts, optax.scale_by_learning_rate(learning_rate)))


def scale_by_kfac(
    net: Layer,
    loss: Loss,
    x: PyTree,
    *,
    damping: float = 1e-3,
    decay: float = 0.95,
    every: int = 5,
    max_change: float = 0.0,
    inverse: str = "split",
    kind: str = "sampled",
    samples: int = 1,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """`Δ = (G + λ I)⁻¹ ∇L` with the Kronecker factors of `net` under `loss` in place of `G`.

    `x` is like a batch of inputs: only its shapes are looked at, to know those of the factors. An update
    takes `batch=(params, x, y)` or `(params, x, y, mode)`, what the gradient was computed from;
    `make_step` and `make_epoch` hand it on. One further walk a step (of a batch in pieces, of all of it).

    `damping` is `λ`, in units of `G`. Factors are running means, `Ā := ε Ā + (1 - ε) A` with
    `ε = min(1 - 1/t, decay)` at step `t`. `every` so many steps `inverse` is taken, `"split"` or
    `"exact"` (above), in float32 at least. With `max_change = c`, `Δ` is made shorter, by `√(c / Δᵀ ∇L)`,
    where `Δᵀ ∇L > c`: that is about `Δᵀ G Δ`, twice the KL divergence that a step with `η = 1` makes,
    which then is `c`. `kind` and `samples` are those of `kronecker_factors`, `seed` that of the signs. In
    training a `BatchNorm` is let through: that examples depend on each other there is neglected, as their
    rows' dependence is.

    Raises `InputError` for a deferred head, a loss without `hessian_root`, a batch that is not given.
    Sources: Martens and Grosse 2015; Grosse and Martens 2016 (convolutions).
    """
    require_positive(damping, "kfac: damping")
    require_whole("kfac", every=every)
    require_kind("kfac", kind, samples)
    if not 0 <= decay < 1:
        raise InputError(f"kfac: decay must be in [0, 1), got {decay!r}")
    if inverse not in INVERSES:
        raise InputError(f"kfac: expected an inverse of {', '.join(INVERSES)}, got {inverse!r}")
    invert, solve = INVERSES[inverse]
    blocks = in_pieces(_blocks) if single_column(kind, samples) else _blocks

    def measure(params: PyTree, parts: list[Part]) -> Blocks:
        return tuple(_curvature(part, parts, blocks) for part in parts)

    def shapes(x: PyTree) -> tuple[Blocks, Blocks]:
        mode = Train(jax.random.key(0))
        params = net.init(jax.random.key(0), x)
        prediction, saved = net.forward(params, x, mode)
        found = measure(params, parts_of(net, params, saved, walk_back(net, params, saved, prediction)))
        averages = _means(found)
        return averages, _each(invert, averages, damping)

    def init(params: PyTree) -> KFACState:
        require_not_deferred(net)
        like = jax.eval_shape(shapes, x)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        return KFACState(jnp.zeros((), jnp.int32), *zeros)

    def update(updates: Any, state: Any, params: Any = None, *, batch: Any = None, **_: Any) -> Any:
        if batch is None or len(batch) not in (3, 4):
            raise InputError(
                "kfac: expected batch=(params, x, y) or (params, x, y, mode) in an update, "
                "which a private step does not hand on"
            )
        count, averages, inverses = state
        new = _means(_measured(batch, jax.random.fold_in(jax.random.key(seed), count)))
        keep = jnp.minimum(1 - 1 / (count + 1), decay)
        averages = jax.tree.map(partial(_moved, keep), averages, new)
        inverses = jax.lax.cond(
            count % every == 0,
            lambda m, _: _each(invert, m, damping),
            lambda _, old: old,
            averages,
            inverses,
        )
        step = _solved(net, updates, inverses, solve, damping)
        if max_change:
            along = sum(
                jnp.vdot(a, b).astype(jnp.float32)
                for a, b in zip(*map(jax.tree.leaves, (step, updates)), strict=True)
            )
            share = jnp.sqrt(jnp.minimum(1.0, max_change / jnp.maximum(along, 1e-30)))
            step = jax.tree.map(lambda a: a * share.astype(a.dtype), step)
        return step, KFACState(count + 1, averages, inverses)

    def _measured(batch: Any, key: Any) -> Blocks:
        params, x, y, mode = (*batch, Eval())[:4]
        return over_columns(net, loss, COLUMNS[kind](samples), measure, params, x, y, mode, key)

    return optax.GradientTransformationExtraArgs(init, update)


# --- what is measured ---------------------------------------------------------------------------------


def _curvature(part: Part, parts: list[Part], blocks: Measure) -> dict[str, Any]:
    """`{"w+b": (Σ A, Σ B, rows), …}` of what is a product, and the sum of squares of what is not."""
    if part.shared or not jax.tree.leaves(part.params):
        return {}
    alone = not any(other.shared and other.at == part.at for other in parts)
    found = mapped(blocks, part) if alone else {}
    known = {name for key in found for name in key.split("+")}
    if not isinstance(part.params, dict):
        return {"": squares_of(part, parts)}
    trained = part.layer.trainable(part.params)
    rest = [name for name in part.params if name not in known and trained[name]]
    squares = squares_of(part, parts) if rest else {}
    return {**found, **{name: squares[name] for name in rest}}


def _blocks(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> dict[str, Any]:
    """The outer products of everything that meets one error, side by side."""
    met: dict[Any, tuple[list[str], list[Any], Any]] = {}
    for name, (seen, error, *groups) in layer.products(params, saved, delta).items():
        names, together, _ = met.setdefault((id(error), *groups), ([], [], (error, *groups)))
        names.append(name)
        together.append(seen)
    found = {"+".join(names): outer_products(seen, *error) for names, seen, error in met.values()}
    tables = layer.rows(params, saved, delta).items()
    return found | {name: row_products(*pair, len(params[name])) for name, pair in tables}


def _moved(keep: Array, old: Array, new: Array) -> Array:
    share = keep.astype(old.dtype)
    return share * old + (1 - share) * new.astype(old.dtype)


def _means(found: Blocks) -> Blocks:
    def mean(entry: Any) -> Any:
        if not isinstance(entry, tuple):
            return entry
        factors = means(*entry)
        return Pair(factors.left, factors.right)

    return tuple({key: mean(entry) for key, entry in part.items()} for part in found)


# --- what is made of it -------------------------------------------------------------------------------


class Eigen(NamedTuple):
    """Eigenvectors, as columns, and values of two factors; of a diagonal, the values alone."""

    left: Array | None
    right: Array
    left_values: Array
    right_values: Array


def _diagonal(factors: Any) -> bool:
    return factors.left.ndim < factors.right.ndim


def _split(factors: Pair, damping: float) -> Pair:
    """`(A + π √λ I)⁻¹` and `(B + √λ/π I)⁻¹`, by Cholesky; `π = 1` where one of them is 0."""
    a = factors.left if _diagonal(factors) else jnp.diagonal(factors.left, axis1=-2, axis2=-1)
    a, b = a.mean(axis=-1), jnp.diagonal(factors.right, axis1=-2, axis2=-1).mean(axis=-1)
    there = (a > 0) & (b > 0)
    pi = jnp.where(there, jnp.sqrt(jnp.where(there, a, 1) / jnp.where(there, b, 1)), 1)
    root = damping**0.5

    def inverted(f: Array, extra: Array) -> Array:
        eye = jnp.broadcast_to(jnp.eye(f.shape[-1], dtype=f.dtype), f.shape)
        lower = jnp.linalg.cholesky(f + extra[..., None, None].astype(f.dtype) * eye)
        return jax.scipy.linalg.cho_solve((lower, True), eye)

    left = 1 / (factors.left + pi[..., None] * root) if _diagonal(factors) else None
    left = inverted(factors.left, pi * root) if left is None else left
    return Pair(left, inverted(factors.right, root / pi))


def _split_solve(inverse: Pair, g: Array, damping: float) -> Array:
    inside = g @ inverse.right
    return inverse.left[..., None] * inside if _diagonal(inverse) else inverse.left @ inside


def _exact(factors: Pair, damping: float) -> Eigen:
    b, w = jnp.linalg.eigh(factors.right)
    a, v = (factors.left, None) if _diagonal(factors) else jnp.linalg.eigh(factors.left)
    return Eigen(v, w, jnp.maximum(a, 0), jnp.maximum(b, 0))


def _exact_solve(e: Eigen, g: Array, damping: float) -> Array:
    inside = g @ e.right if e.left is None else jnp.swapaxes(e.left, -1, -2) @ g @ e.right
    inside = inside / (e.left_values[..., :, None] * e.right_values[..., None, :] + damping)
    inside = inside @ jnp.swapaxes(e.right, -1, -2)
    return inside if e.left is None else e.left @ inside


INVERSES: dict[str, tuple[Callable[..., Any], Callable[..., Array]]] = {
    "split": (_split, _split_solve),
    "exact": (_exact, _exact_solve),
}


def _each(invert: Callable[..., Any], averages: Blocks, damping: float) -> Blocks:
    """What a solve needs of every block; a diagonal is its own."""

    def one(entry: Any) -> Any:
        return invert(entry, damping) if isinstance(entry, Pair) else entry

    return tuple({key: one(entry) for key, entry in part.items()} for part in averages)


def _solved(net: Layer, grads: PyTree, inverses: Blocks, solve: Any, damping: float) -> PyTree:
    """`Δ`, shaped like the gradient: part by part, block by block."""

    def of_part(part: Part, blocks: dict[str, Any]) -> PyTree:
        g = part.params
        if "" in blocks:
            return jax.tree.map(
                lambda a, d: (a.astype(d.dtype) / (d + damping)).astype(a.dtype), g, blocks[""]
            )
        if not blocks:
            return g
        found = dict(g)
        for key, block in blocks.items():
            names = key.split("+")
            if isinstance(block, Array):
                found[key] = (g[key].astype(block.dtype) / (block + damping)).astype(g[key].dtype)
            else:
                found |= _of_block({name: g[name] for name in names}, part, block)
        return found

    def _of_block(own: dict[str, Array], part: Part, block: Any) -> dict[str, Array]:
        *blocks, _, o = block.right.shape
        groups = blocks[len(part.copies) :]  # of a convolution, in the columns of its kernel
        flat = [a.reshape(*part.copies, -1, *groups, o) for a in own.values()]
        flat = [jnp.moveaxis(a, -3, -2) for a in flat] if groups else flat
        together = jnp.concatenate(flat, axis=-2).astype(block.right.dtype)
        step = solve(block, together, damping)
        ends = [sum(a.shape[-2] for a in flat[:i]) for i in range(1, len(flat))]
        rows = jnp.split(step, ends, axis=-2)
        rows = [jnp.moveaxis(r, -3, -2) for r in rows] if groups else rows
        return {
            name: r.reshape(a.shape).astype(a.dtype)
            for (name, a), r in zip(own.items(), rows, strict=True)
        }

    parts = walk(net, grads)
    return rebuild(net, grads, [of_part(p, b) for p, b in zip(parts, inverses, strict=True)])
