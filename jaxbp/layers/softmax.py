"""Softmax and its logarithm: layers whose outputs are coupled along one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree, require_floating
from jaxbp.precision import wide


def _check(layer: Any, x: PyTree) -> None:
    require_floating(x, "x")
    if not -x.ndim <= layer.axis < x.ndim:
        raise InputError(f"{layer}: axis {layer.axis} does not exist in x of shape {list(x.shape)}")


def _narrowed(y: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """`(output, saved)`: the output in `dtype`, and what is kept as it was computed.

    The error of a row is a difference of nearly equal terms, which a `ŷ` rounded to bfloat16 spoils.
    """
    return (y, y) if y.dtype == dtype else (y.astype(dtype), y)


@dataclass(frozen=True, repr=False)
class Softmax(Layer):
    """`ŷ_i = e^{a_i} / Σ_k e^{a_k}` along `axis`. Shape in = shape out; keeps `ŷ`, in float32 at least.

    Every output depends on every input, so an input's error is a sum over *all* outputs:

        ∂ŷ_i/∂a_i = ŷ_i(1 - ŷ_i)       the path through the output's own numerator
        ∂ŷ_k/∂a_i = -ŷ_k ŷ_i           the paths through the shared denominator
        ∂L/∂a_i   = Σ_k ∂L/∂ŷ_k ∂ŷ_k/∂a_i = ŷ_i (∂L/∂ŷ_i - Σ_k ∂L/∂ŷ_k ŷ_k)

    Dropping the second line is the slip of the lecture notes: with two outputs and squared error it
    halves every gradient behind the softmax. Computed after subtracting the row's maximum, which
    changes neither value nor derivative and keeps logits of any size finite.
    """

    axis: int = -1

    def forward(
        self, params: PyTree, x: Float[Array, "*dims"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        _check(self, x)
        y = jax.nn.softmax(x.astype(wide(x.dtype)), axis=self.axis)
        return _narrowed(y, x.dtype)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims"]
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        y, d = saved, dy.astype(saved.dtype)
        shared = jnp.sum(d * y, axis=self.axis, keepdims=True)
        return (y * (d - shared)).astype(dy.dtype), ()


@dataclass(frozen=True, repr=False)
class LogSoftmax(Layer):
    """`z_i = a_i - log Σ_k e^{a_k}` along `axis`. Shape in = shape out; keeps `z`, in float32 at least.

        ∂z_k/∂a_i = [k = i] - e^{z_i}
        ∂L/∂a_i   = ∂L/∂z_i - e^{z_i} Σ_k ∂L/∂z_k

    `e^{z}` is the softmax, so the output is all that is needed.
    """

    axis: int = -1

    def forward(
        self, params: PyTree, x: Float[Array, "*dims"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        _check(self, x)
        z = jax.nn.log_softmax(x.astype(wide(x.dtype)), axis=self.axis)
        return _narrowed(z, x.dtype)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims"]
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        z, d = saved, dy.astype(saved.dtype)
        total = jnp.sum(d, axis=self.axis, keepdims=True)
        return (d - jnp.exp(z) * total).astype(dy.dtype), ()
