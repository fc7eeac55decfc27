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
    require_whole("accumulate", pieces=pieces)
    reduction = getattr(loss, "reduction", None)
    if pieces > 1 and (reduction not in ("mean", "sum") or _ignores(loss, reduction)):
        raise InputError(
            f"accumulate: {loss} over a batch is not made of its pieces' losses (a mean over labels that "
            "are not ignored depends on all of them); use reduction='sum'"
        )

    least = smallest_batch(net)

    def piece(params: PyTree, x: PyTree, y: Any, mode: Mode) -> tuple[Any, PyTree, PyTree]:
        value, grads, saved = passes(net, loss, params, x, y, mode)
        return value, grads, net.update_statistics(params, saved)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode) -> tuple[Any, PyTree, PyTree]:
        count = jax.tree.leaves(x)[0].shape[0]
        size = _size(count, pieces, least)
        if size == count:
            return piece(params, x, y, mode)
        full = count // size

        def step(carry: PyTree, part: Any) -> tuple[PyTree, None]:
            *total, params = carry
            *found, params = piece(params, *part)
            share = 1.0 if reduction == "sum" else jax.tree.leaves(part[0])[0].shape[0] / count
            total = jax.tree.map(lambda a, b: a + share * b, total, found)
            return (*total, params), None

        def strided(a: Any) -> Any:  # every piece has some of every device's examples
            return jnp.swapaxes(a[: full * size].reshape(size, full, *a.shape[1:]), 0, 1)

        first, last = mode.split(2)
        nothing = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(piece, params, *jax.tree.map(lambda a: a[:size], (x, y)), first)[:2],
        )
        start = (*nothing, params)
        carry, _ = jax.lax.scan(step, start, (*jax.tree.map(strided, (x, y)), first.stack(full)))
        if full * size < count:
            rest = jax.tree.map(lambda a: a[full * size :], (x, y))
            carry, _ = step(carry, (*rest, last))
        return carry

    return fn


def _size(count: int, pieces: int, least: int) -> int:
    """Of a piece: `pieces` of it at most, and neither it nor what is left over is below `least`."""
    first = max(-(-count // pieces), min(least, count))
    return next(size for size in range(first, count + 1) if not 0 < count % size < least)


def _ignores(loss: Loss, reduction: str | None) -> bool:
    return reduction == "mean" and getattr(loss, "ignore", None) is not None
