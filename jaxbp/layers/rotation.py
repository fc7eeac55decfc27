"""Places in a sequence as angles: what positions, and attention with rotary positions, are turned by."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxbp.precision import wide


def rotate(
    x: Float[Array, "*batch time features"], positions: Num[Array, "time"], base: float
) -> Float[Array, "*batch time features"]:
    """`R(t) x_t`: the pair `(x_i, x_{i + features/2})` turned by `t ω_i`, in the dtype of `x`.

    `R(t)ᵀ = R(-t)`, so the error goes back with `rotate(d, -positions, base)`.
    """
    angle = angles(positions, x.shape[-1], base, x.dtype)
    a, b = jnp.split(x.astype(angle.dtype), 2, axis=-1)
    cos, sin = (jnp.broadcast_to(f(angle), a.shape) for f in (jnp.cos, jnp.sin))
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def angles(positions: Array, features: int, base: float, dtype: DTypeLike) -> Array:
    """`t ω_i`, `[time, features/2]`, in float32 at least."""
    steps = jnp.arange(features // 2, dtype=wide(dtype))
    return jnp.outer(positions.astype(steps.dtype), base ** (-2.0 / features * steps))
