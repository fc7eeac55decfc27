"""What a loss is, and targets of whatever dtype, read as the numbers that they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbp.integers import is_integer
from jaxbp.layer import InputError, Layer, PyTree, require_floating
from jaxbp.precision import wide


class Loss(ABC):
    """A function of `(prediction, target)` whose derivative by the prediction is written by hand."""

    @abstractmethod
    def forward(self, prediction: PyTree, target: Any) -> tuple[Float[Array, ""], PyTree]:
        """`(value, saved)`."""

    @abstractmethod
    def backward(self, saved: PyTree) -> PyTree:
        """`∂value/∂prediction`, in the prediction's shape and dtype."""

    def hessian_root(self, saved: PyTree, v: Array) -> Array:
        """`S v`, with `S Sᵀ = ∂²value/∂prediction²`, the Hessian `H` of every prediction by itself.

        `v` and the result have the prediction's shape; both are wide. Column `c` of `S` is `S e_c`, and
        for random signs `v` the mean of `(S v)(S v)ᵀ` is `H` (`jaxbp.beyond`).
        """
        raise InputError(f"{self}: no root of its Hessian is written")

    def root_kernel(self, saved: PyTree) -> Array | None:
        """`u ≥ 0` with `S u = 0`, if there is one; shaped like the prediction, rows of length 1.

        Then one column less of a turned `S` gives all of `H` (`jaxbp.beyond`).
        """
        return None

    def hessian(self, saved: PyTree, v: Array) -> Array:
        """`H v`, shaped as in `hessian_root`."""
        raise InputError(f"{self}: no Hessian is written")

    def __call__(self, prediction: PyTree, target: Any) -> Float[Array, ""]:
        """The value alone."""
        return self.forward(prediction, target)[0]

    def __repr__(self) -> str:
        own = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]  # pyright: ignore[reportArgumentType]
        shown = ", ".join(f"{name}={value!r}" for name, value, default in own if value != default)
        return f"{type(self).__name__}({shown})"


def require_loss(of: str, net: Any, loss: Any) -> None:
    """Raise `InputError` unless `net` is a layer, and `loss` has the two passes of one."""
    if not isinstance(net, Layer):
        hint = " (the network comes first, the loss second)" if isinstance(loss, Layer) else ""
        raise InputError(f"{of}: expected a layer as the network, got {_said(net)}{hint}")
    both = all(callable(getattr(loss, name, None)) for name in ("forward", "backward"))
    if isinstance(loss, Layer) or not both:
        raise InputError(
            f"{of}: expected a loss such as SoftmaxCrossEntropy() or SquaredError(), got {_said(loss)}"
        )


def _said(value: Any) -> str:
    return repr(value) if isinstance(value, str | Loss | Layer) else f"{type(value).__name__}"


def check_reduction(loss: Any) -> None:
    if loss.reduction not in ("mean", "sum"):
        raise InputError(f"{loss}: reduction must be 'mean' or 'sum', got {loss.reduction!r}")


def share(reduction: str, shape: tuple[int, ...]) -> float:
    """The weight of one prediction in the value: `1/N` for a mean over `N = Π shape`, 1 for a sum."""
    return 1.0 / max(prod(shape), 1) if reduction == "mean" else 1.0


# --- targets ------------------------------------------------------------------------------------------


def read_target(loss: Loss, target: Any) -> Array | np.ndarray:
    """`target` as an array of real numbers, none of which the reading has changed.

    What is not a JAX array is read by NumPy, and stays with it: without 64-bit values JAX would cut an
    int64 down to an int32, and a label of 2³² would be 0.
    """
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(target)):
        array = jnp.asarray(target)
    else:
        try:
            array = np.asarray(target)
        except ValueError as error:
            raise InputError(f"{loss}: expected a target that is an array, got {target!r}") from error
        if is_integer(array) and array.dtype.kind not in "biu":  # int4, of which NumPy knows little
            array = array.astype(np.int32)
    if not (is_integer(array) or jnp.issubdtype(array.dtype, jnp.floating)):
        got = f"{array.dtype}{list(array.shape)}"
        raise InputError(f"{loss}: expected a target of real numbers, got {got}")
    return array


def to_dtype(array: Array | np.ndarray, dtype: Any) -> Array:
    """The numbers in a floating dtype, straight from the one that they are in."""
    return jnp.asarray(array.astype(dtype))


def read_pair(loss: Loss, prediction: Any, target: Any) -> Array:
    """`target` as an array of the prediction's shape and wide dtype, or an `InputError`."""
    require_floating(prediction, f"{loss}: prediction")
    target = read_target(loss, target)
    if target.shape != prediction.shape:
        raise InputError(
            f"{loss}: expected a target of the prediction's shape {list(prediction.shape)}, "
            f"got {list(target.shape)}"
        )
    return to_dtype(target, wide(prediction.dtype))
