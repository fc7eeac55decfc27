"""What `jaxbp.beyond` makes of one walk, and the same by `vmap` of `jax.grad`: for rows of the bench.

Each is `make(net, loss) -> fn(params, x, y) -> (value, tree)`. A plain step is the unit beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.bench.problem import Projection
from jaxbp.beyond import clipped_gradient, ggn_diagonal, gradient_statistics, kronecker_factors, record
from jaxbp.layer import Layer, PyTree
from jaxbp.losses import Loss
from jaxbp.oracle import reference_value_and_grad

MAX_NORM = 1.0
Make = Callable[[Layer, Loss], Callable[..., tuple[Any, PyTree]]]


@dataclass(frozen=True)
class Quantity:
    """Without `by_autodiff` there is no rival; the float64 reference is then the way by hand."""

    by_hand: Make
    by_autodiff: Make | None = None


def clipped(net: Layer, loss: Loss) -> Callable[..., Any]:
    fn = clipped_gradient(net, loss, MAX_NORM)
    return lambda params, x, y: fn(params, x, y)[:2]


def norms(net: Layer, loss: Loss) -> Callable[..., Any]:
    """The norms beside the gradient itself."""
    walk = record(net, loss)

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        book = walk(params, x, y)
        return book.value, (book.norms(), book.weighted(jnp.full(book.examples, 1 / book.scale)))

    return fn


def statistics(net: Layer, loss: Loss) -> Callable[..., Any]:
    found = gradient_statistics(net, loss)

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        s = found(params, x, y)
        return s.value, (s.norms, s.gradient, s.variance)

    return fn


def diagonal(net: Layer, loss: Loss) -> Callable[..., Any]:
    fn = ggn_diagonal(net, loss)
    return lambda params, x, y: (jnp.zeros(()), fn(params, x, y))


def factors(net: Layer, loss: Loss) -> Callable[..., Any]:
    """Of the targets' own errors: the work of one sample, without a draw that differs by dtype."""
    fn = kronecker_factors(net, loss, kind="empirical")

    def both(params: PyTree, x: Any, y: Any) -> Any:
        found = fn(params, x, y)
        return jnp.zeros(()), {name: (f.left, f.right) for name, f in found.items()}

    return both


def _each(net: Layer, loss: Loss) -> Callable[..., Any]:
    """`(L_n, g_n)` of every example by autodiff, and the share of one in the batch's loss."""
    one = reference_value_and_grad(net, loss)

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        values, grads = jax.vmap(lambda x, y: one(params, x[None], y[None]))(x, y)
        share = 1 / len(values) if getattr(loss, "reduction", "sum") == "mean" else 1.0
        squares = sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads))
        return jnp.sum(values) * share, grads, squares, share

    return fn


def _summed(c: Any, grads: PyTree) -> PyTree:
    return jax.tree.map(lambda g: jnp.tensordot(c.astype(g.dtype), g, 1), grads)


def clipped_by_autodiff(net: Layer, loss: Loss) -> Callable[..., Any]:
    each = _each(net, loss)

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        value, grads, squares, share = each(params, x, y)
        return value, _summed(share * jnp.minimum(1, MAX_NORM / jnp.sqrt(squares)), grads)

    return fn


def norms_by_autodiff(net: Layer, loss: Loss) -> Callable[..., Any]:
    each = _each(net, loss)

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        value, grads, squares, share = each(params, x, y)
        return value, (jnp.sqrt(squares), _summed(jnp.full_like(squares, share), grads))

    return fn


def statistics_by_autodiff(net: Layer, loss: Loss) -> Callable[..., Any]:
    each = _each(net, loss)

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        value, grads, squares, _ = each(params, x, y)
        mean = jax.tree.map(lambda g: g.mean(axis=0), grads)
        variance = sum(jnp.sum(jnp.var(g, axis=0, ddof=1)) for g in jax.tree.leaves(grads))
        return value, (jnp.sqrt(squares), mean, variance)

    return fn


def diagonal_by_autodiff(net: Layer, loss: Loss) -> Callable[..., Any]:
    """`Σ_n Σ_c (J_nᵀ s_nc)²`, example by example and column by column."""
    one = reference_value_and_grad(net, Projection())

    def fn(params: PyTree, x: Any, y: Any) -> Any:
        prediction = net(params, x)
        kept = loss.forward(prediction, y)[1]

        def column(v: Any) -> Any:
            s = loss.hessian_root(kept, jnp.broadcast_to(v, prediction.shape))
            return jax.vmap(lambda x, s: one(params, x[None], s[None])[1])(x, s)

        grads = jax.lax.map(column, jnp.eye(prediction.shape[-1], dtype=prediction.dtype))
        return jnp.zeros(()), jax.tree.map(lambda g: jnp.sum(g**2, axis=(0, 1)), grads)

    return fn


QUANTITIES: dict[str, Quantity] = {
    "clipped": Quantity(clipped, clipped_by_autodiff),
    "norms": Quantity(norms, norms_by_autodiff),
    "statistics": Quantity(statistics, statistics_by_autodiff),
    "diagonal": Quantity(diagonal, diagonal_by_autodiff),
    "factors": Quantity(factors),
}
