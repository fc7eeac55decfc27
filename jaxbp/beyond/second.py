"""Second derivatives times a vector, without the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxbp.bridge import along
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree, shape_text
from jaxbp.losses import Loss
from jaxbp.precision import wide


def products(net: Layer, loss: Loss) -> tuple[Callable[..., PyTree], Callable[..., PyTree]]:
    """`(hvp, ggnvp)`, each `fn(params, x, y, v, mode=Eval()) -> tree`; `v` is shaped like the parameters.

        hvp     ∇²L v       = d/dε ∇L(w + ε v)         the gradient by hand, differentiated along v
        ggnvp   J_wᵀ H J_w v                           u = d/dε f(w + ε v), then H u by the loss,
                                                       then the walk with H u as its error

    Both take one forward and one backward pass, each about twice as long as alone where it is
    differentiated, and their memory. The second is the curvature without that of the network: it is
    never negative, and the two agree where the network is linear. Examples may depend on each other.

    Raises `InputError` where `v` has other shapes or dtypes than the parameters; for `ggnvp`, for a loss
    without a `hessian`. Sources: Pearlmutter 1994; Schraudolph 2002.
    """

    def hvp(params: PyTree, x: PyTree, y: Any, v: PyTree, mode: Mode = Eval()) -> PyTree:
        def gradient(p: PyTree) -> PyTree:
            prediction, saved = net.forward(p, x, mode)
            _, kept = loss.forward(prediction, y)
            return net.backward(p, saved, loss.backward(kept))[0]

        _require_like(v, params)
        return along(gradient, (params,), (v,))

    def ggnvp(params: PyTree, x: PyTree, y: Any, v: PyTree, mode: Mode = Eval()) -> PyTree:
        _require_like(v, params)
        prediction, saved = net.forward(params, x, mode)
        _, kept = loss.forward(prediction, y)
        u = along(lambda p: net.forward(p, x, mode)[0], (params,), (v,))
        error = loss.hessian(kept, u.astype(wide(u.dtype))).astype(prediction.dtype)
        return net.backward(params, saved, error)[0]

    return hvp, ggnvp


def _require_like(v: PyTree, params: PyTree) -> None:
    if jax.tree.structure(v) != jax.tree.structure(params):
        raise InputError("products: expected v with the structure of the parameters")
    for (path, p), d in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(v), strict=True):
        if p.shape != d.shape or p.dtype != d.dtype:
            where = jax.tree_util.keystr(path)
            raise InputError(f"products: expected v{where} as {shape_text(p)}, got {shape_text(d)}")
