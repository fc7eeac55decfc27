"""A network's compiled gradient by hand beside `jax.grad`'s, before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import Eval, Layer, Mode, PyTree
from jaxbp.losses import Loss
from jaxbp.oracle.autodiff import reference_value_and_grad
from jaxbp.oracle.error import relative_error, to_float64


@dataclass(frozen=True)
class Proof:
    """The error of every parameter's gradient against the oracle's, by pytree path."""

    errors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The path with the largest error, and that error; NaN counts as largest."""
        path = max(self.errors, key=lambda p: (np.isnan(self.errors[p]), self.errors[p]))
        return path, self.errors[path]


DOUBTFUL = 1e-4  # relative to a gradient's largest entry; float32 gradients agree to about 1e-6


def prove(net: Layer, loss: Loss, params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Proof:
    """Compare the compiled hand-written gradient with un-jitted float64 `jax.grad`, leaf by leaf.

    `mode` is the same for both, so that both drop the same units. A gradient whose terms cancel (that of
    a bias where the errors add up to zero) is rounding and no more: where `jax.grad` in the working
    dtype is as far off as the hand-written one, the error is taken relative to the size at which that
    noise would be one rounding.
    """

    @jax.jit
    def by_hand(params: PyTree, x: PyTree, y: Any, mode: Mode) -> PyTree:
        prediction, saved = net.forward(params, x, mode)
        return net.backward(params, saved, loss.backward(loss.forward(prediction, y)[1]))[0]

    grads = by_hand(params, x, y, mode)
    with jax.enable_x64(True):
        wide = to_float64((params, x, y))
        reference = reference_value_and_grad(net, loss)(*wide, mode)[1]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(grads)]
    pairs = list(zip(jax.tree.leaves(grads), jax.tree.leaves(reference), strict=True))
    errors = {path: relative_error(g, r) for path, (g, r) in zip(paths, pairs, strict=True)}
    if not all(error <= DOUBTFUL for error in errors.values()):
        working = jax.jit(reference_value_and_grad(net, loss))(params, x, y, mode)[1]
        for path, (g, r), w in zip(paths, pairs, jax.tree.leaves(working), strict=True):
            off, noise = (float(np.max(np.abs(np.float64(v) - np.float64(r)))) for v in (g, w))
            if errors[path] > DOUBTFUL and off <= 20 * noise:
                errors[path] = relative_error(g, r, floor=noise / float(jnp.finfo(w.dtype).eps))
    return Proof(errors)
