"""Losses that are a sum over entries, each of which meets its own target."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.integers import require_all
from jaxbp.layer import PyTree
from jaxbp.losses.base import Loss, check_reduction, read_pair, share


@dataclass(frozen=True, repr=False)
class SquaredError(Loss):
    """`L = Σ_i (y_i - ŷ_i)²` of a prediction `ŷ`: summed over its entries, no ½.

    `∂L/∂ŷ_i = -2 (y_i - ŷ_i) = 2 (ŷ_i - y_i)`. Shapes `[..., outputs]` both; the target may have any
    real dtype. Keeps both: their difference would have to be kept wide.
    (`torch.nn.MSELoss()` also averages over the entries: it is this value divided by `outputs`.)
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_reduction(self)

    def forward(
        self, prediction: Float[Array, "*batch outputs"], target: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        y = read_pair(self, prediction, target)
        difference = prediction.astype(y.dtype) - y
        value = share(self.reduction, prediction.shape[:-1]) * jnp.sum(difference * difference)
        return value, (prediction, y)

    def backward(self, saved: PyTree) -> Float[Array, "*batch outputs"]:
        prediction, y = saved
        weight = share(self.reduction, prediction.shape[:-1])
        return (2 * weight * (prediction.astype(y.dtype) - y)).astype(prediction.dtype)

    def hessian_root(self, saved: PyTree, v: Float[Array, "*batch outputs"]) -> Array:
        """`∂²L/∂ŷ_i² = 2`, any other pair 0: `S = √2 I`, times the root of a prediction's share."""
        return sqrt(2 * share(self.reduction, v.shape[:-1])) * v

    def hessian(self, saved: PyTree, v: Float[Array, "*batch outputs"]) -> Array:
        return 2 * share(self.reduction, v.shape[:-1]) * v


@dataclass(frozen=True, repr=False)
class SigmoidCrossEntropy(Loss):
    """`L = -Σ_i y_i log ŷ_i + (1 - y_i) log(1 - ŷ_i)` with `ŷ = σ(a)`, taken from the logits `a`.

    With `-log σ(a) = log(1 + e⁻ᵃ)` and `1 - σ(a) = σ(-a)`, a term is `y s(-a) + (1 - y) s(a)` of the
    softplus `s(a) = log(1 + eᵃ)`, which `logaddexp` takes without overflow for any logit. Since
    `s'(a) = σ(a)`,

        ∂L/∂a_i = (1 - y_i) σ(a_i) - y_i σ(-a_i)        which is ŷ_i - y_i

    and is taken in the first form: of a logit that is sure and right, the second is the difference of
    two numbers that rounding makes equal. A side without weight has no say, `0 s(∞) = 0`, so that a
    logit of ±inf may be right. Shapes `[..., outputs]` both; keeps the logits and the target. Raises
    `InputError` for shapes that differ and, outside `jit`, for targets outside [0, 1].
    (`torch.nn.BCEWithLogitsLoss()` also averages over the outputs.)
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_reduction(self)

    def forward(
        self, prediction: Float[Array, "*batch outputs"], target: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        y = read_pair(self, prediction, target)
        valid = (y >= 0) & (y <= 1)
        require_all(valid, y, f"{self}: expected targets in [0, 1]", "are out of range")
        a = prediction.astype(y.dtype)
        terms = weighted(y, _softplus(-a)) + weighted(1 - y, _softplus(a))
        return share(self.reduction, a.shape[:-1]) * jnp.sum(terms), (prediction, y)

    def backward(self, saved: PyTree) -> Float[Array, "*batch outputs"]:
        prediction, y = saved
        a = prediction.astype(y.dtype)
        da = (1 - y) * jax.nn.sigmoid(a) - y * jax.nn.sigmoid(-a)
        return (share(self.reduction, a.shape[:-1]) * da).astype(prediction.dtype)

    def hessian_root(self, saved: PyTree, v: Float[Array, "*batch outputs"]) -> Array:
        """`∂²L/∂a_i² = σ'(a_i) = ŷ_i (1 - ŷ_i)` whatever the target: `S` is diagonal, its root."""
        return jnp.sqrt(self._curvature(saved)).astype(v.dtype) * v

    def hessian(self, saved: PyTree, v: Float[Array, "*batch outputs"]) -> Array:
        return self._curvature(saved).astype(v.dtype) * v

    def _curvature(self, saved: PyTree) -> Array:
        prediction, y = saved
        a = prediction.astype(y.dtype)
        return share(self.reduction, a.shape[:-1]) * jax.nn.sigmoid(a) * jax.nn.sigmoid(-a)


def weighted(weight: Array, x: Array) -> Array:
    """`weight · x`, and 0 where the weight is: what does not count may be infinite."""
    return weight * jnp.where(weight == 0, 0, x)


def _softplus(a: Array) -> Array:
    return jnp.logaddexp(a, jnp.zeros_like(a))
