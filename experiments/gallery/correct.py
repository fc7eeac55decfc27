"""Right gradients on which a checker must be silent: three dtypes, and arguments hard on rounding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery import exhibits
from experiments.gallery.common import normal

Case = tuple[Any, tuple[Any, ...], Any]
IN_ALL_DTYPES = (
    "dense",
    "shared weight",
    "gelu",
    "sigmoid",
    "layer norm",
    "rms norm",
    "softmax",
    "squared error",
    "attention",
    "recurrence",
    "ode step",
)


def cases() -> dict[str, Case]:
    """`name -> (fn, args, hand)`: every exhibit in float32, some in other dtypes, and hard ones."""
    found: dict[str, Case] = {}
    for exhibit in exhibits():
        found[f"{exhibit.name} in float32"] = (exhibit.fn, exhibit.args, exhibit.hand)
        for dtype in ("float64", "bfloat16") if exhibit.name in IN_ALL_DTYPES else ():
            if dtype == "float64" and not jax.config.read("jax_enable_x64"):
                continue
            args = jax.tree.map(lambda a, d=dtype: a.astype(d), exhibit.args)
            found[f"{exhibit.name} in {dtype}"] = (exhibit.fn, args, exhibit.hand)
    found.update(_hard())
    return found


def _hard() -> dict[str, Case]:
    """Cancellation, saturation, tiny and huge values, and nearly constant rows."""
    named = {exhibit.name: exhibit for exhibit in exhibits()}
    base = jnp.asarray([[1.0, 2.0, -1.5, 0.3, 0.9], [0.2, -0.4, 1.1, 2.2, -3.0]], jnp.float32)

    def changed(name: str, args: tuple[Any, ...]) -> Case:
        return named[name].fn, args, named[name].hand

    return {
        "layer norm of nearly constant rows": changed(
            "layer norm", (1000 + 1e-2 * base, jnp.ones(5, jnp.float32), jnp.zeros(5, jnp.float32))
        ),
        "layer norm of tiny values": changed(
            "layer norm", (1e-4 * base, jnp.ones(5, jnp.float32), jnp.zeros(5, jnp.float32))
        ),
        "rms norm of huge values": changed("rms norm", (1e6 * base, jnp.ones(5, jnp.float32))),
        "softmax of logits far apart": changed("softmax", (40 * base,)),
        "softmax far from 0": changed("softmax", (1e4 + base,)),
        "cross-entropy of confident logits": changed(
            "cross-entropy", (20 * jnp.sin(jnp.arange(24, dtype=jnp.float32)).reshape(6, 4),)
        ),
        "saturated sigmoids": changed("sigmoid", (30 * base[:, :4], base[:, :4].T @ base)),
        "a sum that cancels": (
            lambda x: jnp.sum(x, axis=-1) ** 2,
            (jnp.asarray([[1e4, -1e4, 1e-2], [3e3, 1e-3, -3e3]], jnp.float32),),
            lambda x, g: (2 * jnp.sum(x, axis=-1) * g)[:, None] * jnp.ones_like(x),
        ),
        "a difference of large squares": (
            lambda a, b: a * a - b * b,
            (jnp.float32(10001.0) + base, jnp.float32(10000.0) + base),
            lambda a, b, g: (2 * a * g, -2 * b * g),
        ),
        "attention with a running maximum": (
            _in_blocks,
            (normal(3, 4), normal(5, 4), normal(5, 2)),
            _whole_hand,
        ),
        "a softmax without a maximum": (
            lambda s, t: jnp.exp(t * s) / jnp.sum(jnp.exp(t * s), axis=-1, keepdims=True),
            (base, jnp.float32(3.5)),
            _plain_softmax_hand,
        ),
        "a fixed point of an iteration": (_settled, (0.22 * normal(4, 4), normal(4, 5)), _settled_hand),
        "the logarithm near 1": (
            lambda x: jnp.log(x),
            (1 + 1e-4 * jnp.abs(base),),
            lambda x, g: g / x,
        ),
    }


def _plain_softmax_hand(s: Any, t: Any, dy: Any) -> Any:
    p = jax.nn.softmax(t * s, -1)
    du = p * (dy - (dy * p).sum(-1, keepdims=True))
    return t * du, (du * s).sum()


def _settled(w: Any, x: Any) -> Any:
    """`z = tanh(w z + x)`, iterated until it stays: it does for small `w` alone."""
    z = jnp.zeros_like(x)
    for _ in range(80):
        z = jnp.tanh(w @ z + x)
    return z


def _settled_hand(w: Any, x: Any, dy: Any) -> Any:
    """The implicit function theorem: `(I - D w)ᵀ u = dy`, a column at a time."""
    z = _settled(w, x)
    d = 1 - z * z
    eye = jnp.eye(len(w), dtype=w.dtype)
    du = jax.vmap(lambda c, g: c * jnp.linalg.solve((eye - c[:, None] * w).T, g), 1, 1)(d, dy)
    return du @ z.T, du


def _in_blocks(q: Any, k: Any, v: Any, size: int = 2) -> Any:
    """Attention, two keys at a time, as fast kernels have it: the running maximum begins at -inf."""
    m, total = jnp.full(len(q), -jnp.inf, q.dtype), jnp.zeros(len(q), q.dtype)
    o = jnp.zeros((len(q), v.shape[1]), q.dtype)
    for j in range(0, len(k), size):
        s = q @ k[j : j + size].T
        new = jnp.maximum(m, s.max(1))
        p, kept = jnp.exp(s - new[:, None]), jnp.exp(m - new)
        total = total * kept + p.sum(1)
        o = o * kept[:, None] + p @ v[j : j + size]
        m = new
    return o / total[:, None]


def _whole_hand(q: Any, k: Any, v: Any, dy: Any) -> Any:
    p = jax.nn.softmax(q @ k.T, -1)
    dp = dy @ v.T
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    return ds @ k, ds.T @ q, p.T @ dy
