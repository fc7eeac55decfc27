"""Dropout."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Train,
    is_training,
    require_floating,
    require_share,
)


@dataclass(frozen=True, repr=False)
class Dropout(Layer):
    """Training: `y_i = m_i x_i / (1 - rate)` with `m_i` 0 with probability `rate`, else 1. Else `y = x`.

    The mask does not depend on `x`, so `∂L/∂x_i = m_i/(1 - rate) · ∂L/∂y_i`: what was dropped gets no
    error, and dividing by the share that is kept leaves the expectation of `y` at `x`. Keeps the mask,
    one byte an entry; drawing it again from the key would cost more time than reading it. In
    evaluation nothing is kept. Any shape.

    Raises `InputError` for a rate outside [0, 1), and in training without a key.
    """

    rate: float

    def __post_init__(self) -> None:
        require_share(self.rate, "Dropout: rate")

    def forward(
        self, params: PyTree, x: Float[Array, "*dims"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        require_floating(x, f"{self}: x")
        if not is_training(mode) or self.rate == 0:
            return x, ()
        if not isinstance(mode, Train) or mode.key is None:
            raise InputError(f"{self}: training draws a mask; pass mode=Train(key)")
        # In float32 whatever x64 says: the float64 oracle must draw the same mask.
        mask = jax.random.bernoulli(mode.key, jnp.float32(1 - self.rate), x.shape)
        return self._masked(mask, x), mask

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims"]
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        return (dy if isinstance(saved, tuple) else self._masked(saved, dy)), ()

    def _masked(self, mask: Array, x: Array) -> Array:
        return jnp.where(mask, x / (1 - self.rate), 0)
