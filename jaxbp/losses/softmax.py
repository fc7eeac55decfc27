"""Cross-entropy of one class among many, taken from logits that the softmax couples."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from jaxbp.integers import between, is_integer, require_all
from jaxbp.layer import InputError, PyTree, require_floating
from jaxbp.losses.base import Loss, check_reduction, read_target, share, to_dtype
from jaxbp.losses.entrywise import weighted
from jaxbp.precision import wide


class Rows(NamedTuple):
    """What each prediction is to be: targets and weights, with leading axes like the logits'."""

    target: Num[Array, "..."]
    """Labels `[...]`, int32 and in range, or distributions `[..., classes]`."""
    weight: Float[Array, "... 1"]
    """1 for a prediction that counts, 0 for one that does not, NaN for one that is wrong."""
    scale: Float[Array, ""]
    """What the sum of the counted losses is multiplied by."""
    counted: Bool[Array, "... 1"] | None
    """Which predictions count, where it is not all of them."""

    @property
    def is_labels(self) -> bool:
        return self.target.ndim < self.weight.ndim  # a distribution may have an integer dtype, too

    def visible(self, prediction: Array) -> Array:
        """0 in place of a prediction that does not count, which may hold anything, NaN too."""
        return prediction if self.counted is None else jnp.where(self.counted, prediction, 0)


class Normalizer(NamedTuple):
    """What makes a softmax of a row of logits `a`; all `[..., 1]` and wide."""

    peak: Float[Array, "... 1"]
    """`max_k a_k`, subtracted first: `e_k = e^{a_k - peak}` is finite for logits of any finite size."""
    total: Float[Array, "... 1"]
    """`Σ_k e_k`."""
    rest: Float[Array, "... 1"]
    """`Σ_k e_k` over all classes but the label; of a distribution, nothing is left out."""


@dataclass(frozen=True, repr=False)
class SoftmaxCrossEntropy(Loss):
    """`L = -Σ_i y_i log ŷ_i` with `ŷ = softmax(a)`, taken from the logits `a: [..., classes]`.

    With `log ŷ_i = a_i - log Σ_k e^{a_k}`, every logit has one path through its own term and one
    through the logarithm of the sum, which every term contains:

        ∂L/∂a_i = -y_i + (Σ_k y_k) ŷ_i        and, where Σ y = 1,  ŷ_i - y_i

    `target` is labels `[...]` of any integer dtype (or booleans, the labels 0 and 1), or a distribution
    of the logits' shape and any real dtype (one-hot or soft; it need not sum to 1).
    `label_smoothing = s` trains on `(1 - s) y + s/classes`. Labels equal to the integer `ignore` have no
    loss and no gradient, and a mean is taken over the others (0 if there are none).

    Keeps the logits and, of each row, the maximum and two sums: `ŷ` is made of them again, as wide as
    at first. At its label a gradient is `ŷ_i - 1 = -Σ_{k≠i} ŷ_k`, and is taken as that sum, since a
    prediction that is nearly sure differs from 1 by less than rounding does.

    Whatever does not count may hold anything, NaN and ±inf too: a prediction that is ignored, or of
    which the whole target is 0, and a class of logit `-inf`, whose `ŷ` is 0, where its `y` is 0. A logit
    of `+inf` or NaN that counts makes its row NaN.

    Raises `InputError` for shapes that do not fit, for labels that are not whole numbers, and for labels
    outside `0 … classes - 1`; inside `jit`, where labels cannot be seen, such a label makes value and
    gradient NaN.
    """

    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore: int | None = None

    def __post_init__(self) -> None:
        check_reduction(self)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"{self}: label_smoothing must be in [0, 1), got {self.label_smoothing}")
        try:
            object.__setattr__(self, "ignore", None if self.ignore is None else index(self.ignore))
        except TypeError:
            raise InputError(f"{self}: ignore must be an integer, got {self.ignore!r}") from None

    def forward(
        self, prediction: Float[Array, "*batch classes"], target: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        require_floating(prediction, f"{self}: prediction")
        rows = self._read(prediction, target)
        a = rows.visible(prediction).astype(rows.weight.dtype)
        losses, normalizer = self._losses(a, rows)
        return rows.scale * jnp.sum(rows.weight * losses), (prediction, rows, normalizer)

    def backward(self, saved: PyTree) -> Float[Array, "*batch classes"]:
        prediction, rows, normalizer = saved
        a = rows.visible(prediction).astype(rows.weight.dtype)
        return (rows.scale * self._error(a, rows, normalizer)).astype(prediction.dtype)

    def hessian_root(self, saved: PyTree, v: Float[Array, "*batch classes"]) -> Array:
        """With `p = softmax(a)`, and the column `√p_c (e_c - p)` of `S` for every class `c`,

            S Sᵀ = Σ_c p_c (e_c - p)(e_c - p)ᵀ = diag p - p pᵀ        for Σ_c p_c = 1
            S v  = √p ∘ v - p ⟨√p, v⟩

        times the root of what the row counts: its weight, its scale, and the sum of its target.
        """
        p, weight = self._probabilities(saved, v.dtype)
        root = jnp.sqrt(p)
        return jnp.sqrt(weight) * (root * v - p * jnp.sum(root * v, axis=-1, keepdims=True))

    def root_kernel(self, saved: PyTree) -> Array:
        """`√p`: `S √p = p - p Σ_c p_c = 0`. A shift of all logits changes nothing."""
        return jnp.sqrt(self._probabilities(saved, saved[1].weight.dtype)[0])

    def hessian(self, saved: PyTree, v: Float[Array, "*batch classes"]) -> Array:
        """`∂ŷ_i/∂a_k = ŷ_i ([i = k] - ŷ_k)`, so that `H v = p ∘ v - p ⟨p, v⟩`, weighted as above."""
        p, weight = self._probabilities(saved, v.dtype)
        return weight * (p * v - p * jnp.sum(p * v, axis=-1, keepdims=True))

    def _probabilities(self, saved: PyTree, dtype: Any) -> tuple[Array, Array]:
        """`ŷ`, and what multiplies the row's `diag ŷ - ŷ ŷᵀ`, `[..., 1]`."""
        prediction, rows, normalizer = saved
        a = rows.visible(prediction).astype(rows.weight.dtype)
        weight = rows.scale * rows.weight
        if not rows.is_labels:
            y = self._smooth(rows.target.astype(a.dtype))
            weight = weight * jnp.sum(y, axis=-1, keepdims=True)
        p = jnp.exp(a - normalizer.peak) / normalizer.total
        return p.astype(dtype), weight.astype(dtype)

    def _losses(self, a: Array, rows: Rows) -> tuple[Array, Normalizer]:
        """`-Σ_i y_i log ŷ_i` of each row, `[..., 1]`, and what the row is normalized by."""
        peak = jnp.max(a, axis=-1, keepdims=True)
        a = a - peak
        e = jnp.exp(a)
        if not rows.is_labels:
            total = jnp.sum(e, axis=-1, keepdims=True)
            terms = weighted(self._smooth(rows.target.astype(a.dtype)), jnp.log(total) - a)
            return jnp.sum(terms, axis=-1, keepdims=True), Normalizer(peak, total, total)
        at_label = jnp.take_along_axis(a, rows.target[..., None], axis=-1, mode="clip")
        own = jnp.exp(at_label)
        rest = jnp.sum(jnp.where(_hits(a, rows), 0, e), axis=-1, keepdims=True)
        log_total = jnp.log1p(rest + (own - 1))  # own = 1 where the label's logit is the largest
        losses = log_total - at_label
        if self.label_smoothing:
            mean = log_total - jnp.mean(a, axis=-1, keepdims=True)
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * mean
        return losses, Normalizer(peak, rest + own, rest)

    def _error(self, a: Array, rows: Rows, normalizer: Normalizer) -> Array:
        """`∂L/∂a` but for the scale, wide."""
        e = jnp.exp(a - normalizer.peak)
        if not rows.is_labels:
            y = self._smooth(rows.target.astype(a.dtype))
            da = jnp.sum(y, axis=-1, keepdims=True) * (e / normalizer.total) - y
        else:
            hits = _hits(a, rows)
            da = jnp.where(hits, -normalizer.rest, e) / normalizer.total
            if self.label_smoothing:  # y = [i = label] + s (1/classes - [i = label])
                da = da + self.label_smoothing * (hits.astype(a.dtype) - 1 / a.shape[-1])
        return rows.weight * da

    def _smooth(self, y: Array) -> Array:
        s = self.label_smoothing
        return (1 - s) * y + s / y.shape[-1] if s else y

    def _read(self, a: Any, target: Any) -> Rows:
        """The target of logits like `a` (its shape and dtype are all that is looked at)."""
        target, dtype = read_target(self, target), wide(a.dtype)
        if is_integer(target) and a.ndim and target.shape == a.shape[:-1]:
            return self._read_labels(target, a.shape[-1], dtype)
        if not a.ndim or target.shape != a.shape:
            raise InputError(
                f"{self}: expected integer labels of shape {list(a.shape[:-1])} or a distribution "
                f"of shape {list(a.shape)}, got {target.dtype}{list(target.shape)}"
            )
        y = target if isinstance(target, jax.Array) else to_dtype(target, dtype)
        counted = None if self.label_smoothing else jnp.any(y != 0, axis=-1, keepdims=True)
        scale = jnp.asarray(share(self.reduction, a.shape[:-1]), dtype)
        return Rows(y, jnp.ones((*a.shape[:-1], 1), dtype), scale, counted)

    def _read_labels(self, labels: Any, classes: int, dtype: Any) -> Rows:
        valid = between(labels, 0, classes - 1)
        counted = None if self.ignore is None else ~between(labels, self.ignore, self.ignore)
        fine = valid if counted is None else valid | ~counted
        require_all(fine, labels, f"{self}: expected labels in 0 … {classes - 1}", "are out of range")
        some = np.where if isinstance(labels, np.ndarray) else jnp.where
        target = jnp.asarray(some(valid, labels, labels.dtype.type(0)).astype(np.int32))
        weight = jnp.where(jnp.asarray(fine), 1.0, jnp.nan).astype(dtype)[..., None]
        scale = jnp.asarray(share(self.reduction, labels.shape), dtype)
        if counted is not None:
            counted = jnp.asarray(counted)[..., None]
            weight = jnp.where(counted, weight, 0)
            if self.reduction == "mean":
                scale = 1 / jnp.maximum(jnp.sum(counted, dtype=dtype), 1)
        return Rows(target, weight, scale, counted)


def _hits(a: Array, rows: Rows) -> Array:
    """Which class is the label, `[..., classes]`."""
    classes = jax.lax.broadcasted_iota(jnp.int32, a.shape, a.ndim - 1)
    return classes == rows.target[..., None]
