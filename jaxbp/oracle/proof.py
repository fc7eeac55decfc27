"""A network's compiled gradient by hand beside `jax.grad`'s, before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import Eval, Layer, Mode, PyTree, map_leaves
from jaxbp.losses import Loss
from jaxbp.oracle.autodiff import quick_jit, reference_value_and_grad
from jaxbp.oracle.error import relative_error, to_float64
from jaxbp.precision import Precision, with_precision


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
ROUGH = 4  # times autodiff's own rounding: by hand the same sums are rounded, in another order


def prove(net: Layer, loss: Loss, params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Proof:
    """Compare the compiled hand-written gradient with float64 `jax.grad`, leaf by leaf.

    `mode` is the same for both, so that both drop the same units. A gradient whose terms cancel (that of
    a bias where the errors add up to zero) is rounding and no more: where `jax.grad` in the working
    dtype is as far off as the hand-written one, the error is taken relative to the size at which that
    noise would be one rounding.

    A network that computes in less than float32 is proven twice: the same layers in float32, as above,
    and as it is. There `jax.grad` of the very same network, which rounds as often, says what rounding
    does: a leaf that is further from float64 than `ROUGH` times that has an error, and it is that
    distance.
    """
    exact = _without_rounding(net, "float64")
    full = _without_rounding(net, "float32")
    with jax.enable_x64(True):
        oracle = reference_value_and_grad(exact, loss)
        wide = quick_jit(lambda mode, *given: oracle(*to_float64(given), mode)[1])
        reference = wide(mode, params, x, y)
    errors = _errors(full, loss, (params, x, y, mode), reference)
    if full != net:
        rough = _rounding_errors(net, loss, (params, x, y, mode), reference)
        errors = {path: max(error, rough.get(path, 0.0), key=_size) for path, error in errors.items()}
    return Proof(errors)


def _without_rounding(net: Layer, dtype: str) -> Layer:
    """`net` with every layer that rounds to less than float32 in `dtype`; the others as they are."""

    def change(layer: Layer) -> Layer:
        own = getattr(layer, "precision", None)
        if own is None:
            return layer
        rounds = any(d is not None and jnp.dtype(d).itemsize < 4 for d in (own.compute, own.output))
        return with_precision(layer, Precision(own.params, dtype, dtype)) if rounds else layer

    return map_leaves(change, net)


def _by_hand(net: Layer, loss: Loss) -> Any:
    """The compiled gradient by hand: a function of `(params, x, y, mode)`."""

    def gradient(params: PyTree, x: PyTree, y: Any, mode: Mode) -> PyTree:
        prediction, saved = net.forward(params, x, mode)
        return net.backward(params, saved, loss.backward(loss.forward(prediction, y)[1]))[0]

    return quick_jit(gradient, level=1)


def _size(error: float) -> float:
    return np.inf if np.isnan(error) else error


def _leaf_errors(gradient: PyTree, reference: PyTree) -> dict[str, tuple[Any, Any]]:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(gradient)]
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(reference), strict=True)
    return dict(zip(paths, pairs, strict=True))


def _off(got: Any, reference: Any) -> float:
    return float(np.max(np.abs(np.float64(got) - np.float64(reference)), initial=0.0))


def _errors(net: Layer, loss: Loss, given: tuple[Any, ...], reference: PyTree) -> dict[str, float]:
    """The relative error of every leaf, of one whose terms cancel as `prove` says."""
    pairs = _leaf_errors(_by_hand(net, loss)(*given), reference)
    errors = {path: relative_error(g, r) for path, (g, r) in pairs.items()}
    if not all(error <= DOUBTFUL for error in errors.values()):
        working = quick_jit(reference_value_and_grad(net, loss), level=1)(*given)[1]
        for (path, (g, r)), w in zip(pairs.items(), jax.tree.leaves(working), strict=True):
            off, noise = _off(g, r), _off(w, r)
            if errors[path] > DOUBTFUL and off <= 20 * noise:
                errors[path] = relative_error(g, r, floor=noise / float(jnp.finfo(w.dtype).eps))
    return errors


def _rounding_errors(
    net: Layer, loss: Loss, given: tuple[Any, ...], reference: PyTree
) -> dict[str, float]:
    """The relative error of every leaf that is further off than rounding explains.

    A leaf of few entries can be nearly exact by luck, so the least that counts as rounding is what the
    leaves lose in the middle, relative to their largest entries.
    """
    pairs = _leaf_errors(_by_hand(net, loss)(*given), reference)
    working = jax.tree.leaves(quick_jit(reference_value_and_grad(net, loss), level=1)(*given)[1])
    noise = {path: _off(w, r) for (path, (_, r)), w in zip(pairs.items(), working, strict=True)}
    shares = [relative_error(w, r) for (_, r), w in zip(pairs.values(), working, strict=True)]
    usual = float(np.median(shares)) if shares else 0.0
    errors = {}
    for path, (g, r) in pairs.items():
        allowed = max(noise[path], usual * float(np.max(np.abs(r), initial=0.0)))
        if not _off(g, r) <= ROUGH * allowed:
            errors[path] = relative_error(g, r)
    return errors
