"""Dense layers, and a weight that is used twice."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from experiments.gallery.common import Exhibit, edit, normal, replace


def dense(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b[None, :]


def dense_hand(x: Any, w: Any, b: Any, dy: Any) -> Any:
    return dy @ w.T, x.T @ dy, dy.sum(0)


def _dense() -> Exhibit:
    faults = {
        "sign of db": (edit(dense_hand, replace(2, lambda g, *a: -g)), ("sign",)),
        "dw averaged over the batch": (
            edit(dense_hand, replace(1, lambda g, x, *a: g / x.shape[0])),
            ("scale",),
        ),
        "dw doubled": (edit(dense_hand, replace(1, lambda g, *a: 2 * g)), ("scale",)),
        "dx with w instead of its transpose": (
            lambda x, w, b, dy: (dy @ w, x.T @ dy, dy.sum(0)),
            ("transpose",),
        ),
        "dw transposed": (lambda x, w, b, dy: (dy @ w.T, dy.T @ x, dy.sum(0)), ("transpose",)),
        "db not summed": (lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy), ("missing-sum",)),
        "db of the last example": (
            lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy[-1]),
            ("missing-sum", "missing-rows"),
        ),
        "dw without the last example": (
            lambda x, w, b, dy: (dy @ w.T, x[:-1].T @ dy[:-1], dy.sum(0)),
            ("missing-rows",),
        ),
        "db forgotten": (lambda x, w, b, dy: (dy @ w.T, x.T @ dy, None), ("zero",)),
        "dw from the output": (
            lambda x, w, b, dy: (dy @ w.T, dense(x, w, b).T @ dy, dy.sum(0)),
            ("wrong-point",),
        ),
        "cotangent ignored": (lambda x, w, b, dy: dense_hand(x, w, b, jnp.ones_like(dy)), ("stale",)),
        "one cotangent too few": (lambda x, w, b, dy: (dy @ w.T, x.T @ dy), ("structure",)),
        "off by a thousandth": (
            edit(dense_hand, replace(1, lambda g, *a: g * jnp.asarray(1.001, g.dtype))),
            ("scale",),
        ),
    }
    return Exhibit("dense", dense, (normal(7, 5), normal(5, 5, seed=1), normal(5)), dense_hand, faults)


def two_uses(x: Any, w: Any, v: Any) -> Any:
    h = jnp.tanh(x @ w)
    return jnp.tanh(h @ w) @ v


def two_uses_hand(x: Any, w: Any, v: Any, dy: Any, first: int = 1, second: int = 1) -> Any:
    h = jnp.tanh(x @ w)
    k = jnp.tanh(h @ w)
    dk = (dy @ v.T) * (1 - k * k)
    dh = (dk @ w.T) * (1 - h * h)
    return dh @ w.T, second * (h.T @ dk) + first * (x.T @ dh), k.T @ dy


def _two_uses() -> Exhibit:
    def shape_state(x: Any, w: Any, v: Any, dy: Any) -> Any:
        h = jnp.tanh(x @ w)
        k = jnp.tanh(h @ w)
        dk = (dy @ v.T) * (1 - k * k)
        dh = (dk @ w.T) * (1 - k * k)
        return dh @ w.T, h.T @ dk + x.T @ dh, k.T @ dy

    faults = {
        "second use of the weight": (lambda *a: two_uses_hand(*a, second=0), ("missing-path",)),
        "first use of the weight": (lambda *a: two_uses_hand(*a, first=0), ("missing-path",)),
        "first use counted twice": (lambda *a: two_uses_hand(*a, first=2), ("extra-path",)),
        "dx and dw exchanged": (edit(two_uses_hand, lambda g, *a: (g[1], g[0], g[2])), ("swapped",)),
        "derivative at the wrong layer's value": (shape_state, ("wrong-point", "wrong-activation")),
    }
    return Exhibit(
        "shared weight",
        two_uses,
        (normal(4, 4), normal(4, 4, seed=2), normal(4, 3)),
        two_uses_hand,
        faults,
    )


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_dense(), _two_uses()]
