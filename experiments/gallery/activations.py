"""Activations behind a matrix product."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, normal


def gelu_mlp(x: Any, w: Any) -> Any:
    return jax.nn.gelu(x @ w, approximate=True)


def _gelu_slope(a: Any, exact: bool) -> Any:
    return jax.vmap(jax.vmap(jax.grad(lambda t: jax.nn.gelu(t, approximate=not exact))))(a)


def gelu_hand(x: Any, w: Any, dy: Any, exact: bool = False) -> Any:
    da = dy * _gelu_slope(x @ w, exact)
    return da @ w.T, x.T @ da


def _gelu() -> Exhibit:
    def at_output(x: Any, w: Any, dy: Any) -> Any:
        da = dy * _gelu_slope(gelu_mlp(x, w), False)
        return da @ w.T, x.T @ da

    def forgotten(x: Any, w: Any, dy: Any) -> Any:
        return dy @ w.T, x.T @ dy

    faults = {
        "the exact form's derivative": (lambda *a: gelu_hand(*a, exact=True), ("wrong-activation",)),
        "derivative at the output": (at_output, ("wrong-point",)),
        "derivative forgotten": (forgotten, ("wrong-activation", "missing-path")),
    }
    return Exhibit("gelu", gelu_mlp, (normal(6, 4), normal(4, 5)), gelu_hand, faults)


def sigmoid_net(x: Any, w: Any) -> Any:
    return jax.nn.sigmoid(x @ w)


def sigmoid_hand(x: Any, w: Any, dy: Any) -> Any:
    h = jax.nn.sigmoid(x @ w)
    da = dy * h * (1 - h)
    return da @ w.T, x.T @ da


def _sigmoid() -> Exhibit:
    def at_input(x: Any, w: Any, dy: Any) -> Any:
        a = x @ w
        da = dy * a * (1 - a)
        return da @ w.T, x.T @ da

    def of_tanh(x: Any, w: Any, dy: Any) -> Any:
        h = jax.nn.sigmoid(x @ w)
        da = dy * (1 - h * h)
        return da @ w.T, x.T @ da

    def only_positive(x: Any, w: Any, dy: Any) -> Any:
        h = jax.nn.sigmoid(x @ w)
        da = dy * jnp.where(x @ w > 0, h * (1 - h), 0)
        return da @ w.T, x.T @ da

    faults = {
        "h(1 - h) taken at the input": (at_input, ("wrong-point",)),
        "tanh's formula": (of_tanh, ("wrong-activation",)),
        "nothing for negative inputs": (only_positive, ("missing-rows",)),
    }
    return Exhibit(
        "sigmoid", sigmoid_net, (normal(6, 4, seed=3), normal(4, 5, seed=3)), sigmoid_hand, faults
    )


def tanh_net(x: Any, w: Any, scale: Any) -> Any:
    return jnp.tanh(x @ w) * scale[None]


def tanh_hand(x: Any, w: Any, scale: Any, dy: Any) -> Any:
    h = jnp.tanh(x @ w)
    da = dy * scale[None] * (1 - h * h)
    return da @ w.T, x.T @ da, jnp.sum(dy * h, axis=0)


def _tanh() -> Exhibit:
    def no_square(x: Any, w: Any, scale: Any, dy: Any) -> Any:
        h = jnp.tanh(x @ w)
        da = dy * scale[None] * (1 - h)
        return da @ w.T, x.T @ da, jnp.sum(dy * h, axis=0)

    args = (normal(6, 4, seed=5), normal(4, 5, seed=6), normal(5, seed=7))
    return Exhibit("tanh", tanh_net, args, tanh_hand, {"1 - h": (no_square, ("wrong-activation",))})


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_gelu(), _sigmoid(), _tanh()]
