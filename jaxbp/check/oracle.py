"""The oracle: the same forward pass, differentiated by `jax.grad` in float64 and without `jit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import Eval, Layer, Mode, PyTree
from jaxbp.losses import Loss


def reference_value_and_grad(net: Layer, loss: Loss) -> Any:
    """`fn(params, x, y, mode=Eval()) -> (value, grads)` with `grads` by `jax.grad`."""

    def value(params: PyTree, x: PyTree, y: Any, mode: Mode) -> Any:
        return loss.forward(net.forward(params, x, mode)[0], y)[0]

    fn = jax.value_and_grad(value, allow_int=True)

    def call(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Any:
        return fn(params, x, y, mode)

    return call


def to_float64(tree: PyTree) -> PyTree:
    """Floating leaves as float64 (`jax.enable_x64` must be on), everything else as it is."""

    def widen(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(widen, tree)


def relative_error(got: Any, reference: Any, floor: float = 0.0) -> float:
    """`max |got - reference| / max |reference|` of one array; the largest entry sets the scale.

    `floor` is the least scale to measure against, for references that are zero but for rounding; one
    that is zero throughout has no scale, and without a floor its error is absolute. Not finite where
    `got` or `reference` is not. Raises `ValueError` where the shapes differ.
    """
    got, reference = np.asarray(got, np.float64), np.asarray(reference, np.float64)
    if got.shape != reference.shape:
        raise ValueError(f"shapes differ: {got.shape} and {reference.shape}")
    if not got.size:
        return 0.0
    scale = max(np.max(np.abs(reference)), floor)
    return float(np.max(np.abs(got - reference)) / (scale if scale > 0 else 1.0))


@dataclass(frozen=True)
class Proof:
    """The error of every parameter's gradient against the oracle's, by pytree path."""

    errors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The path with the largest error, and that error; NaN counts as largest."""
        path = max(self.errors, key=lambda p: (np.isnan(self.errors[p]), self.errors[p]))
        return path, self.errors[path]


def prove(net: Layer, loss: Loss, params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Proof:
    """Compare the compiled hand-written gradient with un-jitted float64 `jax.grad`, leaf by leaf.

    `mode` is the same for both, so that both drop the same units.
    """
    from jaxbp.train.step import value_and_grad

    grads = jax.jit(value_and_grad(net, loss))(params, x, y, mode)[1]
    with jax.enable_x64(True):
        wide = to_float64((params, x, y))
        reference = reference_value_and_grad(net, loss)(*wide, mode)[1]
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(reference), strict=True)
    return Proof({jax.tree_util.keystr(path): relative_error(g, r) for (path, g), r in pairs})
