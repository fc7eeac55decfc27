"""The fully connected layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Static,
    require_floating,
    require_params,
    require_whole,
)
from jaxbp.layers.initializers import initializer
from jaxbp.precision import PrecisionField, matmul, wide


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """`a_i = Σ_j w_ij x_j + b_i`, in arrays `y = x w + b`. `[..., in] -> [..., features]`.

    Parameters `w: [in, features]` (the transpose of the notes' `W`, so that rows of a batch multiply
    from the left) and `b: [features]`. With `δ_i = ∂L/∂a_i`, and `a_i` the only place where `w_ij`
    and `b_i` stand, while `x_j` stands in every `a_i`:

        ∂L/∂w_ij = δ_i x_j           gradient: the error meets the input, summed over the batch
        ∂L/∂b_i  = δ_i               gradient: the same with an input of 1
        ∂L/∂x_j  = Σ_i δ_i w_ij      pull: one path through every neuron i

    Keeps `x`. Computes in the dtype of `x` unless `precision` says otherwise; sums run in float32 at
    least. `initializer` is `"he"`, `"glorot"`, `"lecun"`, `"normal"`, `"zeros"` or a function of
    `(key, shape, dtype)` for `w`; `b` starts at 0.

    Raises `InputError` for an integer `x`, a scalar, or a feature count that `w` does not have.
    """

    features: int
    bias: bool = True
    initializer: str | Callable[..., Array] = "lecun"
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        require_whole("Dense", features=self.features)
        initializer(self.initializer)

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._check(x)
        dtype = self.precision.params or x.dtype
        w = initializer(self.initializer)(key, (x.shape[-1], self.features), dtype)
        return {"w": w, "b": jnp.zeros(self.features, dtype)} if self.bias else {"w": w}

    def forward(
        self, params: PyTree, x: Float[Array, "*batch in"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*batch out"], PyTree]:
        require_params(self, params, *(("w", "b") if self.bias else ("w",)))
        w = params["w"]
        self._check(x, w)
        compute = self.precision.compute or x.dtype
        seen = x.astype(compute)
        y = matmul(seen, w.astype(compute))
        if self.bias:
            y = y + jnp.broadcast_to(params["b"].astype(y.dtype), y.shape)
        return y.astype(self.precision.output or x.dtype), (seen, Static(x.dtype))

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*batch out"]
    ) -> tuple[Float[Array, "*batch in"], Float[Array, "*batch out"]]:
        x, input_dtype = saved
        delta = dy.astype(x.dtype)
        dx = matmul(delta, params["w"].T.astype(x.dtype), input_dtype.value)
        return dx, delta

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*batch out"]) -> PyTree:
        (x, _), w = saved, params["w"]
        rows_x, rows_delta = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
        dw = matmul(rows_x.T, rows_delta).astype(w.dtype)
        if not self.bias:
            return {"w": dw}
        db = jnp.sum(rows_delta, axis=0, dtype=wide(delta.dtype))
        return {"w": dw, "b": db.astype(params["b"].dtype)}

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        return {"w": (saved[0], delta), **({"b": (None, delta)} if self.bias else {})}

    def _check(self, x: PyTree, w: Array | None = None) -> None:
        require_floating(x, f"{self}: x")
        if not x.shape:
            raise InputError(f"{self}: x must have a feature axis, got a scalar")
        if w is not None and (w.ndim != 2 or w.shape != (x.shape[-1], self.features)):
            raise InputError(
                f"{self}: expected {w.shape[0]} features in the last axis of x, got {x.shape[-1]} "
                f"(x has shape {list(x.shape)}, w has shape {list(w.shape)})"
            )
