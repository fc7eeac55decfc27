"""Gradients in which no example counts for more than a given length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.book import record
from jaxbp.layer import Eval, Layer, Mode, PyTree, require_positive
from jaxbp.losses import Loss


def clipped_gradient(
    net: Layer, loss: Loss, max_norm: float
) -> Callable[..., tuple[Float[Array, ""], PyTree, Float[Array, "examples"]]]:
    """`fn(params, x, y, mode=Eval()) -> (value, grads, norms)`, every example's gradient clipped.

        grads = Σ_n min(1, C / ‖g_n‖) g_n          C = max_norm; over n where the loss is a mean

    `g_n` is the gradient of example `n`'s own loss and `norms` are `‖g_n‖` before clipping. One forward
    and one backward pass: the norms come from what the walk kept, and the sum from the same once more,
    `gradient(params, saved, c δ)` at every layer. Adding or removing one example changes the sum by `C`
    at most, which is what differential privacy asks of it (Abadi et al. 2016).

    Errors as in `record`.
    """
    require_positive(max_norm, "clipped_gradient: max_norm")
    walk = record(net, loss)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Any:
        book = walk(params, x, y, mode)
        norms = book.norms()
        shares = jnp.minimum(1.0, max_norm / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny))
        return book.value, book.weighted(shares / book.scale), norms

    return fn
