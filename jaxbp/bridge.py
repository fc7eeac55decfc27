"""In and out of autodiff: a hand-written network in `jax.grad`, any JAX function as a layer, fused pairs.

Besides `check/` and `oracle/`, this is the only place under `jaxbp/` where autodiff appears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from jaxbp.layer import Eval, Layer, Mode, PyTree


def as_function(net: Layer) -> Callable[..., PyTree]:
    """`fn(params, x, mode=Eval()) -> y`, whose reverse-mode derivative is `net`'s hand-written one.

    For use inside Flax, Equinox, Optax or any `jax.grad`/`jax.vjp`, also twice over: the backward pass
    is plain JAX and can be differentiated again. Forward mode (`jax.jvp`) of the function is not
    defined, as for every `jax.custom_vjp`; differentiate `net.__call__` for that.

    Running statistics (`BatchNorm`) have no gradient and the function does not move them: after a step,
    `params = net.update_statistics(params, net.forward(params, x, mode)[1])`, or let `value_and_grad(…,
    with_saved=True)` and `apply_updates` do both. Without, the network is evaluated with the statistics
    that it started with.
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


# --- a vendor's fused pair ----------------------------------------------------------------------------


def fused_attention(
    q: Array, k: Array, v: Array, causal: bool, window: int | None, implementation: Any
) -> tuple[Array, PyTree]:
    """`(o, pair)` of `q: [..., T, H, D]`, `k, v: [..., S, K, D]` by `jax.nn.dot_product_attention`.

    `pair` is what the backward kernel needs, and the kernel: a pytree whose arrays have the axes `...`
    of the examples first, to be kept for `fused_attention_pull`. `implementation` is `"cudnn"` or, to
    try the pair without a GPU, `"xla"`.
    """
    near = None if window is None else (window - 1, 0 if causal else window - 1)
    options: dict[str, Any] = {"is_causal": causal, "local_window_size": near}

    def attend(*qkv: Array) -> Any:
        return jax.nn.dot_product_attention(*qkv, **options, implementation=implementation)

    def forward(*qkv: Array) -> tuple[Array, PyTree]:
        return jax.vjp(attend, *qkv)

    for _ in q.shape[:-3]:
        forward = jax.vmap(forward)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return forward(q, k, v)


def fused_attention_pull(pair: PyTree, do: Array) -> tuple[Array, Array, Array]:
    """`(dq, dk, dv)` from the error of `o`."""

    def backward(pair: PyTree, do: Array) -> tuple[Array, Array, Array]:
        return pair(do)

    for _ in do.shape[:-3]:
        backward = jax.vmap(backward)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return backward(pair, do)


# --- a JAX function as a layer ------------------------------------------------------------------------


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


def along(fn: Callable[..., Any], primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]) -> Any:
    """`d/dε fn(primals + ε tangents)` at `ε = 0`: how what a walk by hand makes changes along a way."""
    return jax.jvp(fn, primals, tangents)[1]
