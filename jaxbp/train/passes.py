"""The two passes over a batch: at once, or piece by piece where all of it would not fit in memory.

A batch's loss is a sum over its examples, or their mean, so its gradient is one over its pieces:

    ∂L/∂w = Σ_pieces s_k ∂L_k/∂w        s_k = 1 for a sum, the piece's share of the examples for a mean

Only one piece's saved values are held at a time, beside the gradient that is being added up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.layer import Gather, InputError, Layer, Mode, PyTree, require_whole, smallest_batch
from jaxbp.losses import Loss


def passes(
    net: Layer,
    loss: Loss,
    params: PyTree,
    x: PyTree,
    y: Any,
    mode: Mode,
    gather: Gather | None = None,
) -> tuple[Any, PyTree, PyTree]:
    """`(value, gathered, saved)`: forward, loss, backward."""
    prediction, saved = net.forward(params, x, mode)
    value, kept = loss.forward(prediction, y)
    grads, _ = net.backward(params, saved, loss.backward(kept), gather)
    return value, grads, saved


def in_pieces(net: Layer, loss: Loss, pieces: int = 1) -> Callable[..., tuple[Any, PyTree, PyTree]]:
    """`fn(params, x, y, mode) -> (value, grads, params with the statistics moved)`, in so many pieces.

    A `scan` over pieces of one size, and a smaller one where `pieces` does not divide the batch. Value
    and gradient are those of the whole batch up to rounding; but a layer that looks at all examples of a
    batch (`BatchNorm`) looks at a piece, and moves its running statistics once a piece. Pieces are fewer
    and larger where some would otherwise be below the network's `smallest_batch`.

    Raises `InputError` for a mean over the labels that are not ignored: what a piece's mean counts for
    depends on the labels in the others.
    """
    refuse_pieces(loss, pieces)

    def piece(params: PyTree, part: Any, mode: Mode) -> tuple[Any, PyTree, PyTree]:
        value, grads, saved = passes(net, loss, params, part[0], part[1], mode)
        return value, grads, net.update_statistics(params, saved)

    mean = getattr(loss, "reduction", "sum") == "mean"
    over = over_pieces(piece, pieces, smallest_batch(net), mean)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode) -> tuple[Any, PyTree, PyTree]:
        return over(params, (x, y), mode)

    return fn


def refuse_pieces(loss: Loss, pieces: int) -> None:
    """Raise `InputError` where the loss of a batch is not made of its pieces' losses."""
    require_whole("accumulate", pieces=pieces)
    reduction = getattr(loss, "reduction", None)
    ignores = reduction == "mean" and getattr(loss, "ignore", None) is not None
    if pieces > 1 and (reduction not in ("mean", "sum") or ignores):
        raise InputError(
            f"accumulate: {loss} over a batch is not made of its pieces' losses (a mean over labels that "
            "are not ignored depends on all of them); use reduction='sum'"
        )


def over_pieces(piece: Callable[..., Any], pieces: int, least: int, mean: bool) -> Callable[..., Any]:
    """`fn(params, batch, mode)`: what `piece(params, part, mode) -> (value, grads, params)` adds up to.

    Every array of `batch` has the examples first. With `mean`, a piece counts by its share of them.
    """

    def fn(params: PyTree, batch: Any, mode: Mode) -> tuple[Any, PyTree, PyTree]:
        count = jax.tree.leaves(batch)[0].shape[0]
        size = _size(count, pieces, least)
        if size == count:
            return piece(params, batch, mode)
        full = count // size

        def step(carry: PyTree, given: Any) -> tuple[PyTree, None]:
            *total, params = carry
            part, mode = given
            *found, params = piece(params, part, mode)
            share = jax.tree.leaves(part)[0].shape[0] / count if mean else 1.0
            total = jax.tree.map(lambda a, b: a + share * b, total, found)
            return (*total, params), None

        def strided(a: Any) -> Any:  # every piece has some of every device's examples
            return jnp.swapaxes(a[: full * size].reshape(size, full, *a.shape[1:]), 0, 1)

        first, last = mode.split(2)
        nothing = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(piece, params, jax.tree.map(lambda a: a[:size], batch), first)[:2],
        )
        start = (*nothing, params)
        carry, _ = jax.lax.scan(step, start, (jax.tree.map(strided, batch), first.stack(full)))
        if full * size < count:
            carry, _ = step(carry, (jax.tree.map(lambda a: a[full * size :], batch), last))
        return carry

    return fn


def _size(count: int, pieces: int, least: int) -> int:
    """Of a piece: `pieces` of it at most, and neither it nor what is left over is below `least`."""
    first = max(-(-count // pieces), min(least, count))
    return next(size for size in range(first, count + 1) if not 0 < count % size < least)
