"""What the rows of a layer see, and their errors, each with itself: what Kronecker factors are made of.

Letters as in `squares.py`. A row sees `x` and has the error `δ`; of all rows of all examples, `Σ x xᵀ`
and `Σ δ δᵀ` are two products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.squares import by_group, cut, pieces_of
from jaxbp.layer import Layer, PyTree
from jaxbp.precision import wide

Measure = Callable[[Layer, PyTree, PyTree, PyTree], PyTree]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """`G ≈ left ⊗ right` for one parameter `[i, o]` whose entries are counted row by row.

    Of a `Dense`, `left` is the mean of `x xᵀ` over everything that it saw, and `right` the sum of `δ δᵀ`.
    A bias `[o]` meets a 1: its `left` is `[[1]]`. (A `Head`'s table is laid out the other way round; what
    counts is the product of the two, not the size of one.) Groups of a convolution are the axis after
    those of the copies: each is a block of its own. Of a table, `left` is a diagonal: how often a row
    is met.
    """

    left: Float[Array, "*blocks i i"] | Float[Array, "*blocks i"]
    right: Float[Array, "*blocks o o"]


def outer_products_of(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> dict[str, Any]:
    """`{name: (Σ x xᵀ, Σ δ δᵀ, how many rows)}` of the parameters whose gradient is one product."""
    products, tables = layer.products(params, saved, delta), layer.rows(params, saved, delta)
    found = {name: outer_products([seen], *error) for name, (seen, *error) in products.items()}
    return found | {name: row_products(*pair, len(params[name])) for name, pair in tables.items()}


def in_pieces(measure: Measure) -> Measure:
    """`measure`, a sum over examples, of some of them at a time where `pieces_of` says so.

    Of one column. What rows see is the same for every column, and what is the same in every turn of a
    loop, XLA makes once, if it is no loop itself.
    """

    def fn(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        pieces = pieces_of(layer, params, saved, delta)
        if pieces == 1:
            return measure(layer, params, saved, delta)
        parts = cut((saved, delta), pieces)

        def add(sums: PyTree, own: tuple[PyTree, PyTree]) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, sums, measure(layer, params, *own)), None

        first = jax.tree.map(lambda a: a[0], parts)
        shapes = jax.eval_shape(lambda own: measure(layer, params, *own), first)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return fn


def outer_products(seen: list[Any], error: Array, groups: int = 1) -> tuple[Array, Array, Array]:
    """`(Σ x xᵀ, Σ δ δᵀ, how many rows)` of one column; `x` is all that was `seen`, side by side.

    Of several groups (and then of one thing seen), all three have them as their first axis.
    """
    if groups > 1:
        return by_group(lambda x, d: outer_products([x], d), seen[0], error, groups)
    dtype, ones = wide(error.dtype), jnp.ones((*error.shape[:-1], 1), error.dtype)
    together = [ones if a is None else a for a in seen]

    def square(a: Array) -> Array:
        rows = a.reshape(-1, a.shape[-1])
        return jnp.matmul(rows.T, rows, preferred_element_type=dtype)

    x = jnp.concatenate(together, axis=-1) if len(together) > 1 else together[0]
    return square(x), square(error), jnp.asarray(prod(error.shape[:-1]), dtype)


def row_products(ids: Array, error: Array, size: int) -> tuple[Array, Array, Array]:
    """The same of a table: `x` has a 1 at the row that is met, so `Σ x xᵀ` is a diagonal of counts."""
    _, right, rows = outer_products([None], error)
    return jnp.zeros(size, right.dtype).at[ids.reshape(-1)].add(1, mode="drop"), right, rows


def means(left: Array, right: Array, rows: Array) -> Factors:
    """`A`, the mean over rows, and `B`, the sum over them."""
    return Factors(left / rows.reshape(*rows.shape, *(1,) * (left.ndim - rows.ndim)), right)
