"""How much the examples of a batch agree about where to go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.book import record
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree
from jaxbp.losses import Loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Statistics:
    """Of the gradients `g_n` of a batch's examples, as a sample of all examples.

    `gradient` is their mean `ḡ`; `norms` are `‖g_n‖`; `variance` estimates `tr Σ`, the sum over all
    parameters of the variance of one example's gradient; `noise_scale` is `tr Σ / ‖G‖²`, with `G` the
    gradient over all examples: about the batch size beyond which a larger batch no longer pays
    (McCandlish et al. 2018, the "simple" noise scale). `signal_to_noise` is `‖G‖² / (tr Σ / n)`, of the
    mean of this batch.
    """

    value: Float[Array, ""]
    gradient: PyTree
    norms: Float[Array, "examples"]
    variance: Float[Array, ""]
    noise_scale: Float[Array, ""]
    signal_to_noise: Float[Array, ""]


def gradient_statistics(net: Layer, loss: Loss) -> Callable[..., Statistics]:
    """`fn(params, x, y, mode=Eval()) -> Statistics`, from one forward and one backward pass.

    With `n` examples, `ḡ` their mean gradient and `m = Σ ‖g_n‖² / n`, both estimates are unbiased:

        tr Σ  = (m - ‖ḡ‖²) n / (n - 1)            ‖G‖² = ‖ḡ‖² - tr Σ / n

    `‖G‖²` is a difference and may come out at or below 0 where the batch is all noise: then the noise
    scale is infinite, and the signal 0. Average both over batches before dividing where that happens
    often. Errors as in `record`, and for a batch of one.
    """
    walk = record(net, loss)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Statistics:
        book = walk(params, x, y, mode)
        n = book.examples
        if n < 2:
            raise InputError(f"gradient_statistics: expected at least 2 examples, got {n}")
        squares = book.square_norms()
        mean = book.weighted(jnp.full(n, 1 / n, squares.dtype))
        length = sum(jnp.sum(jnp.square(g.astype(squares.dtype))) for g in book.trainable(mean))
        variance = (jnp.mean(squares) - length) * n / (n - 1)
        signal = jnp.maximum(length - variance / n, 0)
        return Statistics(
            book.value,
            mean,
            jnp.sqrt(squares),
            variance,
            jnp.where(signal > 0, variance / jnp.where(signal > 0, signal, 1), jnp.inf),
            signal * n / variance,
        )

    return fn
