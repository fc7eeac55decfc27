"""Gradients in which no example counts for more than a given length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxbp.beyond.book import record, recorded
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree, require_positive
from jaxbp.losses import Loss


def clipped_gradient(
    net: Layer, loss: Loss, max_norm: float
) -> Callable[..., tuple[Float[Array, ""], PyTree, Float[Array, "examples"]]]:
    """`fn(params, x, y, mode=Eval()) -> (value, grads, norms)`, every example's gradient clipped.

        grads = Σ_n min(1, C / ‖g_n‖) g_n          C = max_norm; over n where the loss is a mean

    `g_n` is the gradient of example `n`'s own loss and `norms` are `‖g_n‖` before clipping. One forward
    and one backward pass: the norms come from what the walk kept, and the sum from the same once more,
    `gradient(params, saved, c δ)` at every layer. Adding or removing one example changes the sum by `C`
    at most, which is what differential privacy asks of it (Abadi et al. 2016); up to rounding, which in
    bfloat16 is some thousandths.

    Errors as in `record`.
    """
    require_positive(max_norm, "clipped_gradient: max_norm")
    walk = record(net, loss)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Any:
        book = walk(params, x, y, mode)
        norms = book.norms()
        return book.value, book.weighted(_shares(norms, max_norm) / book.scale), norms

    return fn


def clipped_sums(
    net: Layer, loss: Loss, max_norm: float
) -> Callable[..., tuple[Float[Array, ""], PyTree, Float[Array, "examples"]]]:
    """`fn(params, x, y, mode, present=None) -> (Σ L_n, Σ min(1, C / ‖g_n‖) g_n, norms)`.

    Sums whatever the loss's reduction, over the examples that are `present` (all): the others fill a
    batch up to its shape.
    """
    require_positive(max_norm, "clip_examples")

    def fn(
        params: PyTree,
        x: PyTree,
        y: Any,
        mode: Mode = Eval(),
        present: Bool[Array, "examples"] | None = None,
    ) -> Any:
        book, prediction = recorded(net, loss, params, x, y, mode)
        norms = book.norms()
        shares = _shares(norms, max_norm)
        if present is None:
            return book.value * book.scale, book.weighted(shares), norms
        if present.shape != norms.shape:
            raise InputError(
                f"present: expected {len(norms)} entries, one an example, got {list(present.shape)}"
            )

        def own(prediction: PyTree, y: Any) -> Any:
            one = jax.tree.map(lambda a: a[None], (prediction, y))
            return loss.forward(*one)[0]

        losses = jax.vmap(own)(prediction, y)
        total = jnp.sum(jnp.where(present, losses, 0))
        return total, book.weighted(jnp.where(present, shares, 0)), norms

    return fn


def _shares(norms: Float[Array, "examples"], max_norm: float) -> Float[Array, "examples"]:
    return jnp.minimum(1.0, max_norm / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny))
