"""In and out of autodiff: a hand-written network inside `jax.grad`, any JAX function as a layer.

Besides `check/` and `oracle/`, this is the only place under `jaxbp/` where autodiff appears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxbp.layer import Eval, Layer, Mode, PyTree


def as_function(net: Layer) -> Callable[..., PyTree]:
    """`fn(params, x, mode=Eval()) -> y`, whose reverse-mode derivative is `net`'s hand-written one.

    For use inside Flax, Equinox, Optax or any `jax.grad`/`jax.vjp`, also twice over: the backward pass
    is plain JAX and can be differentiated again. Forward mode (`jax.jvp`) of the function is not
    defined, as for every `jax.custom_vjp`; differentiate `net.__call__` for that.
    """

    @jax.custom_vjp
    def fn(params: PyTree, x: PyTree, mode: Mode) -> PyTree:
        return net.forward(params, x, mode)[0]

    def forward(params: PyTree, x: PyTree, mode: Mode) -> tuple[PyTree, PyTree]:
        y, saved = net.forward(params, x, mode)
        return y, (params, saved)

    def backward(residuals: PyTree, dy: PyTree) -> tuple[PyTree, PyTree, None]:
        params, saved = residuals
        dparams, dx = net.backward(params, saved, dy)
        return dparams, dx, None

    fn.defvjp(forward, backward)

    def call(params: PyTree, x: PyTree, mode: Mode = Eval()) -> PyTree:
        return fn(params, x, mode)

    return call


def with_gradient(value_and_grad: Callable[[PyTree], tuple[Any, PyTree]]) -> Callable[[PyTree], Any]:
    """`fn(params) -> value`, whose reverse-mode derivative is the `grads` of `value_and_grad(params)`.

    For an optimizer that differentiates the loss by itself (a line search, a Hessian's diagonal).
    """

    @jax.custom_vjp
    def fn(params: PyTree) -> Any:
        return value_and_grad(params)[0]

    def backward(grads: PyTree, dvalue: Any) -> tuple[PyTree]:
        return (jax.tree.map(lambda g: dvalue.astype(g.dtype) * g, grads),)

    fn.defvjp(value_and_grad, backward)
    return fn


def _without_float0(tree: PyTree) -> PyTree:
    """Cotangents of integer leaves are `float0` to `jax.vjp` and `None` to a layer."""
    return jax.tree.map(lambda t: None if t.dtype == jax.dtypes.float0 else t, tree)


@dataclass(frozen=True, repr=False)
class Auto(Layer):
    """Any JAX function `fn(params, x) -> y` as a layer, its `pull` and `gradient` by `jax.vjp`.

    So that a network can be moved over one layer at a time. `init(key, x) -> params` makes its
    parameters (none by default). Keeps `x` and runs `fn` again in the backward pass; under `jit`, XLA
    shares that work with the forward pass where both stand in straight-line code. `fn` must be
    hashable (a function is) and sees no `mode`.
    """

    fn: Callable[[PyTree, PyTree], PyTree]
    make: Callable[[Any, PyTree], PyTree] | None = None

    def init(self, key: Any, x: PyTree) -> PyTree:
        return () if self.make is None else self.make(key, x)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        return self.fn(params, x), x

    def pull(self, params: PyTree, saved: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        _, vjp = jax.vjp(lambda x: self.fn(params, x), saved)
        return _without_float0(vjp(dy)[0]), dy

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        _, vjp = jax.vjp(lambda p: self.fn(p, saved), params)
        return vjp(delta)[0]
