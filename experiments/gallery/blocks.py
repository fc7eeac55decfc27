"""Blocks with several paths: gated units, group norm, several outputs, linear algebra."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal, replace


def gated(x: Any, w: Any, v: Any, u: Any) -> Any:
    a = x @ w
    return (a * jax.nn.sigmoid(a) * (x @ v)) @ u


def gated_hand(
    x: Any, w: Any, v: Any, u: Any, dy: Any, first: float = 1.0, second: float = 1.0, gate: bool = True
) -> Any:
    a, b = x @ w, x @ v
    s = jax.nn.sigmoid(a)
    dh = dy @ u.T
    da = dh * (first * s + second * a * s * (1 - s)) * (b if gate else 1)
    db = dh * a * s
    return da @ w.T + db @ v.T, x.T @ da, x.T @ db, (a * s * b).T @ dy


def _gated() -> Exhibit:
    def through_the_gate_alone(x: Any, w: Any, v: Any, u: Any, dy: Any) -> Any:
        a = x @ w
        return ((dy @ u.T) * a * jax.nn.sigmoid(a)) @ v.T

    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the sigmoid's own derivative": (lambda *a: gated_hand(*a, second=0.0), ("missing-path",)),
        "the factor beside it": (lambda *a: gated_hand(*a, first=0.0), ("missing-path",)),
        "the gate left out": (lambda *a: gated_hand(*a, gate=False), ("scale", "missing-path")),
        "dx through one branch": (
            edit(gated_hand, replace(0, lambda g, *a: through_the_gate_alone(*a))),
            ("missing-path",),
        ),
        "dw and dv exchanged": (edit(gated_hand, lambda g, *a: (g[0], g[2], g[1], g[3])), ("swapped",)),
    }
    args = (normal(5, 4), normal(4, 6), normal(4, 6, seed=1), normal(6, 3))
    return Exhibit("gated unit", gated, args, gated_hand, faults)


def group_norm(x: Any, s: Any) -> Any:
    n, t, c = x.shape
    r = x.reshape(n, t, 2, c // 2)
    m = r.mean((1, 3), keepdims=True)
    v = r.var((1, 3), keepdims=True)
    return ((r - m) * jax.lax.rsqrt(v + 1e-5)).reshape(x.shape) * s[None, None]


def group_norm_hand(x: Any, s: Any, dy: Any, count: int = 0, eps: float = 1e-5, mean: float = 1.0) -> Any:
    n, t, c = x.shape
    r = x.reshape(n, t, 2, c // 2)
    k = count or t * c // 2
    i = jax.lax.rsqrt(r.var((1, 3), keepdims=True) + eps)
    xh = (r - r.mean((1, 3), keepdims=True)) * i
    d = (dy * s[None, None]).reshape(r.shape)
    of_mean, of_variance = d.sum((1, 3), keepdims=True) / k, (d * xh).sum((1, 3), keepdims=True) / k
    dx = i * (d - mean * of_mean - xh * of_variance)
    return dx.reshape(x.shape), (dy * xh.reshape(x.shape)).sum((0, 1))


def _group_norm() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the wrong count": (lambda *a: group_norm_hand(*a, count=3), ("scale",)),
        "one less than the count": (lambda *a: group_norm_hand(*a, count=11), ("scale",)),
        "another ε": (lambda *a: group_norm_hand(*a, eps=1e-1), ("wrong-point", "scale")),
        "path through the mean": (lambda *a: group_norm_hand(*a, mean=0.0), ("missing-path",)),
    }
    return Exhibit(
        "group norm", group_norm, (normal(3, 4, 6), 1 + 0.1 * normal(6)), group_norm_hand, faults
    )


def two_outputs(x: Any, w: Any) -> Any:
    h = jnp.tanh(x @ w)
    return h, jnp.exp(0.3 * h.sum(-1))


def two_outputs_hand(x: Any, w: Any, dy: Any, second: float = 1.0) -> Any:
    h, e = two_outputs(x, w)
    da = (dy[0] + second * 0.3 * (dy[1] * e)[:, None]) * (1 - h * h)
    return da @ w.T, x.T @ da


def _two_outputs() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the second output ignored": (lambda *a: two_outputs_hand(*a, second=0.0), ("missing-path",)),
        "its sign": (lambda *a: two_outputs_hand(*a, second=-1.0), ("sign",)),
        "the 0.3": (lambda *a: two_outputs_hand(*a, second=1 / 0.3), ("scale",)),
    }
    return Exhibit("two outputs", two_outputs, (normal(4, 3), normal(3, 5)), two_outputs_hand, faults)


def inverse(a: Any) -> Any:
    return jnp.linalg.inv(a)


def inverse_hand(a: Any, dy: Any) -> Any:
    i = jnp.linalg.inv(a)
    return (-i.T @ dy @ i.T,)


def _inverse() -> Exhibit:
    def forwards(a: Any, dy: Any) -> Any:
        i = jnp.linalg.inv(a)
        return (-i @ dy @ i,)

    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "not transposed": (forwards, ("transpose",)),
        "the sign": (edit(inverse_hand, lambda g, *a: (-g[0],)), ("sign",)),
    }
    square = normal(4, 4) + 3 * jnp.eye(4, dtype=jnp.float32)
    return Exhibit("inverse", inverse, (square,), inverse_hand, faults)


def safe_norm(x: Any) -> Any:
    square = (x * x).sum(-1)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square))).astype(x.dtype)


def safe_norm_hand(x: Any, dy: Any) -> Any:
    size = safe_norm(x)[:, None]
    return (jnp.where(size == 0, 0, x / jnp.where(size == 0, 1, size)).astype(x.dtype) * dy[:, None],)


def _safe_norm() -> Exhibit:
    def unguarded(x: Any, dy: Any) -> Any:
        return (x / jnp.sqrt((x * x).sum(-1, keepdims=True)) * dy[:, None],)

    def clipped(x: Any, dy: Any) -> Any:
        return safe_norm_hand(x, jnp.clip(dy, -10, 10))

    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "no guard where a row is 0": (unguarded, ("nan",)),
        "the error clipped": (clipped, ("stale",)),
        "the square left as it is": (
            edit(safe_norm_hand, lambda g, x, dy: (x * dy[:, None],)),
            ("scale",),
        ),
    }
    return Exhibit("safe norm", safe_norm, (normal(4, 3).at[1].set(0),), safe_norm_hand, faults)


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_gated(), _group_norm(), _two_outputs(), _inverse(), _safe_norm()]
