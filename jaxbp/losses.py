"""Losses: `forward(prediction, target) -> (value, saved)` and `backward(saved) -> ∂L/∂prediction`.

A prediction is a vector along the last axis; leading axes count predictions. The loss of one
prediction is a *sum* over its entries, as in the notes: no ½, no mean. `reduction` says what becomes of
the losses of many: `"mean"` over the predictions (the default, so that a learning rate does not depend
on the batch size), or their `"sum"`. Values are computed and returned in float32 at least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxbp.layer import InputError, PyTree, require_floating
from jaxbp.precision import matmul, wide


class Loss(ABC):
    """A function of `(prediction, target)` whose derivative by the prediction is written by hand."""

    @abstractmethod
    def forward(self, prediction: PyTree, target: Any) -> tuple[Float[Array, ""], PyTree]:
        """`(value, saved)`."""

    @abstractmethod
    def backward(self, saved: PyTree) -> PyTree:
        """`∂value/∂prediction`, in the prediction's shape and dtype."""

    def __call__(self, prediction: PyTree, target: Any) -> Float[Array, ""]:
        """The value alone."""
        return self.forward(prediction, target)[0]

    def __repr__(self) -> str:
        own = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]  # pyright: ignore[reportArgumentType]
        shown = ", ".join(f"{name}={value!r}" for name, value, default in own if value != default)
        return f"{type(self).__name__}({shown})"


def _check_reduction(loss: Any) -> None:
    if loss.reduction not in ("mean", "sum"):
        raise InputError(f"{loss}: reduction must be 'mean' or 'sum', got {loss.reduction!r}")


def _share(reduction: str, shape: tuple[int, ...]) -> float:
    """The weight of one prediction in the value: `1/N` for a mean over `N = Π shape`, 1 for a sum."""
    return 1.0 / max(prod(shape), 1) if reduction == "mean" else 1.0


def _check_pair(loss: Loss, prediction: Any, target: Any) -> Array:
    """`target` as an array of the prediction's shape and wide dtype, or an `InputError`."""
    require_floating(prediction, f"{loss}: prediction")
    target = jnp.asarray(target)
    if target.shape != prediction.shape:
        raise InputError(
            f"{loss}: expected a target of the prediction's shape {list(prediction.shape)}, "
            f"got {list(target.shape)}"
        )
    return target.astype(wide(prediction.dtype))


@dataclass(frozen=True, repr=False)
class SquaredError(Loss):
    """`L = Σ_i (y_i - ŷ_i)²` of a prediction `ŷ`: summed over its entries, no ½.

    `∂L/∂ŷ_i = -2 (y_i - ŷ_i) = 2 (ŷ_i - y_i)`. Shapes `[..., outputs]` both; keeps the difference.
    (`torch.nn.MSELoss()` also averages over the entries: it is this value divided by `outputs`.)
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        _check_reduction(self)

    def forward(
        self, prediction: Float[Array, "*batch outputs"], target: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        target = _check_pair(self, prediction, target)
        difference = prediction.astype(target.dtype) - target
        share = _share(self.reduction, prediction.shape[:-1])
        return share * jnp.sum(difference * difference), difference.astype(prediction.dtype)

    def backward(self, saved: PyTree) -> Float[Array, "*batch outputs"]:
        return 2 * _share(self.reduction, saved.shape[:-1]) * saved


@dataclass(frozen=True, repr=False)
class SigmoidCrossEntropy(Loss):
    """`L = -Σ_i y_i log ŷ_i + (1 - y_i) log(1 - ŷ_i)` with `ŷ = σ(a)`, taken from the logits `a`.

    With `log σ(a) = -log(1 + e⁻ᵃ)`, each term is `log(1 + eᵃ) - a y`, which `logaddexp` takes without
    overflow for any logit. The sigmoid's derivative `ŷ(1 - ŷ)` cancels against that of the logarithm:
    `∂L/∂a_i = ŷ_i - y_i`. Shapes `[..., outputs]` both; keeps `∂L/∂a`. Raises
    `InputError` for shapes that differ and, outside `jit`, for targets outside [0, 1].
    (`torch.nn.BCEWithLogitsLoss()` also averages over the outputs.)
    """

    reduction: str = "mean"

    def __post_init__(self) -> None:
        _check_reduction(self)

    def forward(
        self, prediction: Float[Array, "*batch outputs"], target: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        y = _check_pair(self, prediction, target)
        _require_all((y >= 0) & (y <= 1), y, f"{self}: expected targets in [0, 1]")
        a = prediction.astype(y.dtype)
        terms = jnp.logaddexp(a, jnp.zeros_like(a)) - a * y
        share = _share(self.reduction, a.shape[:-1])
        return share * jnp.sum(terms), (jax.nn.sigmoid(a) - y).astype(prediction.dtype)

    def backward(self, saved: PyTree) -> Float[Array, "*batch outputs"]:
        return _share(self.reduction, saved.shape[:-1]) * saved


@dataclass(frozen=True, repr=False)
class SoftmaxCrossEntropy(Loss):
    """`L = -Σ_i y_i log ŷ_i` with `ŷ = softmax(a)`, taken from the logits `a: [..., classes]`.

    With `log ŷ_i = a_i - log Σ_k e^{a_k}`, every logit has one path through its own term and one
    through the logarithm of the sum, which every term contains:

        ∂L/∂a_i = -y_i + (Σ_k y_k) ŷ_i        and, where Σ y = 1,  ŷ_i - y_i

    `target` is integer labels `[...]`, or a distribution of the logits' shape (one-hot or soft; it
    need not sum to 1). `label_smoothing = s` trains on `(1 - s) y + s/classes`. Labels equal to
    `ignore` have no loss and no gradient, and a mean is taken over the others (0 if there are none).
    Keeps `ŷ` and the target.

    Raises `InputError` for shapes that do not fit and for labels outside `0 … classes - 1`; inside
    `jit`, where labels cannot be seen, such a label makes value and gradient NaN. Finite for logits of
    any finite size, since the row's maximum is subtracted first.
    """

    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore: int | None = None

    def __post_init__(self) -> None:
        _check_reduction(self)
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"{self}: label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def forward(
        self, prediction: Float[Array, "*batch classes"], target: Any
    ) -> tuple[Float[Array, ""], PyTree]:
        require_floating(prediction, f"{self}: prediction")
        target = jnp.asarray(target)
        weight = self._weight(prediction, target)
        a = prediction.astype(weight.dtype)
        a = a - jnp.max(a, axis=-1, keepdims=True)
        e = jnp.exp(a)  # taken once, for the value and for ŷ
        total = jnp.sum(e, axis=-1, keepdims=True)
        log_p, p = a - jnp.log(total), e / total
        y = self._distribution(p, target)
        value = -jnp.sum(jnp.where(y == 0, 0, y * log_p) * weight)
        return value, (p.astype(prediction.dtype), target, weight)

    def backward(self, saved: PyTree) -> Float[Array, "*batch classes"]:
        p, target, weight = saved
        wide_p = p.astype(weight.dtype)
        y = self._distribution(wide_p, target)
        # labels sum to 1 by their making; a sum over the classes is spared
        total = 1 if _is_labels(p, target) else jnp.sum(y, axis=-1, keepdims=True)
        da = weight * (total * wide_p - y)
        return da.astype(p.dtype)

    def _distribution(self, like: Array, target: Array) -> Array:
        """The target as a distribution over the classes in the last axis of `like`."""
        classes = like.shape[-1]
        if _is_labels(like, target):
            y = jax.nn.one_hot(target, classes, dtype=like.dtype)
        else:
            y = target.astype(like.dtype)
        return (1 - self.label_smoothing) * y + self.label_smoothing / classes

    def _weight(self, a: Array, target: Array) -> Array:
        """`[..., 1]`: what each prediction's loss is multiplied by in the value."""
        dtype, classes = wide(a.dtype), a.shape[-1]
        if not _is_labels(a, target):
            if target.shape != a.shape:
                raise InputError(
                    f"{self}: expected integer labels of shape {list(a.shape[:-1])} or a distribution "
                    f"of shape {list(a.shape)}, got {target.dtype}{list(target.shape)}"
                )
            return jnp.full((*a.shape[:-1], 1), _share(self.reduction, a.shape[:-1]), dtype)
        counted = jnp.ones(target.shape, bool) if self.ignore is None else target != self.ignore
        valid = ~counted | ((target >= 0) & (target < classes))
        _require_all(valid, target, f"{self}: expected labels in 0 … {classes - 1}")
        weight = counted.astype(dtype)
        if self.reduction == "mean":
            weight = weight / jnp.maximum(jnp.sum(weight), 1)
        return jnp.where(valid, weight, jnp.nan)[..., None]


@dataclass(frozen=True, repr=False)
class LinearCrossEntropy(SoftmaxCrossEntropy):
    """`SoftmaxCrossEntropy` of the logits `a = h w`, taken from the pair `(h, w)` that makes them.

    `h: [..., features]` and `w: [features, classes]` are what a deferred head hands on
    (`Head(classes, deferred=True)`). With `δ = ∂L/∂a` from `SoftmaxCrossEntropy`, the linear layer's
    two equations follow in the loss:

        ∂L/∂h_j  = Σ_i δ_i w_ji
        ∂L/∂w_ji = Σ_n h_nj δ_ni          summed over the predictions

    `backward` returns both as a pair, each in the dtype of what it belongs to. Targets, fields, range
    checks and errors are those of `SoftmaxCrossEntropy`; logits are taken in float32 at least. This form
    makes all logits at once, and keeps `h`, `w` and `ŷ`.
    """

    def forward(self, prediction: Any, target: Any) -> tuple[Float[Array, ""], PyTree]:
        if not isinstance(prediction, tuple | list) or len(prediction) != 2:
            raise InputError(f"{self}: expected the pair (h, w) of a deferred head, got {prediction!r}")
        h, w = prediction
        require_floating(h, f"{self}: h")
        require_floating(w, f"{self}: w")
        if w.ndim != 2 or h.ndim < 1 or h.shape[-1] != w.shape[0]:
            raise InputError(
                f"{self}: expected h as [..., features] and w as [features, classes], "
                f"got {list(h.shape)} and {list(w.shape)}"
            )
        value, saved = super().forward(matmul(h, w), target)
        return value, (h, w, saved)

    def backward(self, saved: PyTree) -> Any:
        h, w, kept = saved
        delta = super().backward(kept).astype(h.dtype)
        rows_h, rows_delta = h.reshape(-1, h.shape[-1]), delta.reshape(-1, delta.shape[-1])
        dh, dw = matmul(delta, w.T), matmul(rows_h.T, rows_delta)
        return dh.astype(h.dtype), dw.astype(w.dtype)


def _is_labels(a: Array, target: Array) -> bool:
    return jnp.issubdtype(target.dtype, jnp.integer) and target.shape == a.shape[:-1]


def _require_all(valid: Array, values: Array, message: str) -> None:
    """Outside `jit`, where values can be seen: raise unless all are valid."""
    if not isinstance(valid, Tracer) and not bool(jnp.all(valid)):
        wrong = values[~valid]
        count = f"{wrong.size} of {values.size} are out of range"
        raise InputError(f"{message}, got {wrong.reshape(-1)[0]} ({count})")
