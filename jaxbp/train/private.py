"""The passes of a private step: every example's gradient clipped, noise on their sum (DP-SGD).

    g = (Σ_n min(1, C / ‖g_n‖) g_n + σ C ξ) / B          ξ ~ N(0, 1) for every trainable number

One example changes the sum by at most `C`, so the noise hides it as well as `σ` and the number of steps
say (`jaxbp.beyond.privacy` has the account). `B` is not looked up in the batch: where each example
joins a batch by a draw of its own (Poisson sampling), how many did is itself a secret. Source: Abadi et
al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.layer import InputError, Layer, Mode, PyTree, Train, require_positive, smallest_batch
from jaxbp.losses import Loss
from jaxbp.precision import wide
from jaxbp.train.passes import over_pieces, refuse_pieces

APART = 0x6E6F6973  # a key of its own: no layer's number among its siblings, nor the augmentation's


@dataclass(frozen=True)
class Private:
    """`C`, `σ` in units of `C`, and the expected batch size `B`: `None` for as many as a batch has."""

    clip_examples: float
    noise: float = 0.0
    expected: float | int | None = None

    @classmethod
    def of(
        cls, clip_examples: float | None, noise: float = 0.0, expected: float | int | None = None
    ) -> Private | None:
        """Those asked for; `None` where none is."""
        if clip_examples is None:
            if noise or expected is not None:
                raise InputError("noise: expected clip_examples too, which limits an example")
            return None
        require_positive(clip_examples, "clip_examples")
        if not noise >= 0:
            raise InputError(f"noise: expected a number >= 0, got {noise}")
        if expected is not None:
            require_positive(expected, "expected")
        return cls(clip_examples, noise, expected)


def private_passes(net: Layer, loss: Loss, private: Private, pieces: int = 1) -> Callable[..., Any]:
    """`fn(params, x, y, mode, present=None) -> (value, g, params)`; `value` is without noise.

    `g` is divided by `B` where the loss is a mean; of a sum it is the sum. In `pieces`, examples are
    clipped piece by piece and the noise comes once. Rows that are not `present` count for nothing.

    Raises `InputError` where `record` does (a `BatchNorm` in training), and for noise without a key.
    """
    from jaxbp.beyond.clip import clipped_sums

    refuse_pieces(loss, pieces)
    sums = clipped_sums(net, loss, private.clip_examples)
    mean = getattr(loss, "reduction", "sum") == "mean"

    def piece(params: PyTree, part: Any, mode: Mode) -> tuple[Any, PyTree, PyTree]:
        value, grads, _ = sums(params, *part[:2], mode, *part[2:])
        return value, grads, params

    over = over_pieces(piece, pieces, smallest_batch(net), mean=False)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode, present: Any = None) -> Any:
        batch = (x, y) if present is None else (x, y, present)
        value, total, _ = over(params, batch, mode)
        total = with_noise(net, params, total, private, mode)
        count = jax.tree.leaves(x)[0].shape[0]
        if mean:
            there = count if present is None else jnp.maximum(jnp.sum(present), 1).astype(value.dtype)
            size = private.expected or count
            value, total = value / there, jax.tree.map(lambda g: g / size, total)
        return value, total, params

    return fn


def with_noise(net: Layer, params: PyTree, total: PyTree, private: Private, mode: Mode) -> PyTree:
    """`total + σ C ξ`, every trainable leaf with a key of its own."""
    if not private.noise:
        return total
    key = mode.key if isinstance(mode, Train) else None
    if key is None:
        raise InputError("noise: expected mode=Train(key) with a fresh key a step, got none")
    leaves, structure = jax.tree.flatten(total)
    keys = jax.random.split(jax.random.fold_in(key, APART), len(leaves))
    size = private.noise * private.clip_examples

    def noisy(g: Any, key: Any, trained: bool) -> Any:
        if not trained:
            return g
        dtype = wide(g.dtype)
        return (g.astype(dtype) + size * jax.random.normal(key, g.shape, dtype)).astype(g.dtype)

    mask = jax.tree.leaves(net.trainable(params))
    return jax.tree.unflatten(structure, map(noisy, leaves, keys, mask))
