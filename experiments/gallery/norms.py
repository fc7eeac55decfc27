"""Layer, root-mean-square and batch norms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal, replace


def layer_norm(x: Any, g: Any, b: Any) -> Any:
    m = x.mean(-1, keepdims=True)
    c = x - m
    v = (c * c).mean(-1, keepdims=True)
    return c / jnp.sqrt(v + 1e-5) * g[None] + b[None]


def layer_norm_hand(
    x: Any, g: Any, b: Any, dy: Any, mean: int = 1, variance: int = 1, gamma: int = 1
) -> Any:
    c = x - x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)
    xh = c * r
    d = dy * (g[None] if gamma else 1)
    dx = r * (d - mean * d.mean(-1, keepdims=True) - variance * xh * (d * xh).mean(-1, keepdims=True))
    return dx, (dy * xh).sum(0), dy.sum(0)


def _layer_norm() -> Exhibit:
    def without(**flags: int) -> Hand:
        return lambda *a: layer_norm_hand(*a, **flags)

    faults = {
        "path through the mean": (without(mean=0), ("missing-path",)),
        "path through the variance": (without(variance=0), ("missing-path",)),
        "both paths": (without(mean=0, variance=0), ("missing-path",)),
        "scale left out of dx": (without(gamma=0), ("scale", "missing-path")),
        "dscale not multiplied by the normed input": (
            edit(layer_norm_hand, replace(1, lambda g, x, s, b, dy: dy.sum(0))),
            ("wrong-point", "scale", "missing-path", "swapped"),
        ),
        "dscale over the wrong axis": (
            lambda x, g, b, dy: (*layer_norm_hand(x, g, b, dy)[:1], (dy * x).sum(1), dy.sum(0)),
            ("shape",),
        ),
        "doffset of the mean": (
            edit(layer_norm_hand, replace(2, lambda g, x, *a: g / x.shape[0])),
            ("scale",),
        ),
    }
    return Exhibit(
        "layer norm",
        layer_norm,
        (normal(6, 5), jnp.ones(5, jnp.float32), jnp.zeros(5, jnp.float32)),
        layer_norm_hand,
        faults,
    )


def rms_norm(x: Any, g: Any) -> Any:
    r = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * r * g[None]


def rms_norm_hand(x: Any, g: Any, dy: Any, second: float = 1.0) -> Any:
    r = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    d = dy * g[None]
    return r * d - second * x * r**3 * (d * x).mean(-1, keepdims=True), (dy * x * r).sum(0)


def _rms_norm() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "path through the root mean square": (
            lambda *a: rms_norm_hand(*a, second=0.0),
            ("missing-path",),
        ),
        "that path with the wrong sign": (lambda *a: rms_norm_hand(*a, second=-1.0), ("sign",)),
        "that path twice": (lambda *a: rms_norm_hand(*a, second=2.0), ("extra-path",)),
        "a sum in the place of the mean": (lambda *a: rms_norm_hand(*a, second=5.0), ("scale",)),
    }
    return Exhibit("rms norm", rms_norm, (normal(6, 5), 1 + 0.1 * normal(5)), rms_norm_hand, faults)


def batch_norm(x: Any, g: Any) -> Any:
    c = x - x.mean(0)[None]
    return c / jnp.sqrt((c * c).mean(0) + 1e-3)[None] * g[None]


def batch_norm_hand(x: Any, g: Any, dy: Any, paths: int = 1) -> Any:
    c = x - x.mean(0)[None]
    r = 1 / jnp.sqrt((c * c).mean(0) + 1e-3)[None]
    d = dy * g[None]
    xh = c * r
    coupled = d.mean(0)[None] + xh * (d * xh).mean(0)[None]
    return r * (d - paths * coupled), (dy * xh).sum(0)


def _batch_norm() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "statistics taken as constants": (lambda *a: batch_norm_hand(*a, paths=0), ("missing-path",)),
        "dscale with a factor of the batch": (
            edit(batch_norm_hand, replace(1, lambda g, x, *a: g * x.shape[0])),
            ("scale",),
        ),
    }
    return Exhibit("batch norm", batch_norm, (normal(8, 3), 1 + 0.2 * normal(3)), batch_norm_hand, faults)


GROUPS = 2


def group_norm(x: Any, g: Any, b: Any) -> Any:
    y = x.reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
    c = y - y.mean((1, 3), keepdims=True)
    r = 1 / jnp.sqrt((c * c).mean((1, 3), keepdims=True) + 1e-5)
    return (c * r).reshape(x.shape) * g[None, None, None] + b[None, None, None]


def group_norm_hand(x: Any, g: Any, b: Any, dy: Any, first: Any = (1, 3), second: Any = (1, 3)) -> Any:
    y = x.reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
    c = y - y.mean((1, 3), keepdims=True)
    r = 1 / jnp.sqrt((c * c).mean((1, 3), keepdims=True) + 1e-5)
    d, xh = (dy * g[None, None, None]).reshape(y.shape), c * r
    dx = r * (d - d.mean(first, keepdims=True) - xh * (d * xh).mean(second, keepdims=True))
    return dx.reshape(x.shape), (dy * xh.reshape(x.shape)).sum((0, 1, 2)), dy.sum((0, 1, 2))


def _group_norm() -> Exhibit:
    def along(first: Any, second: Any) -> Hand:
        return lambda *a: group_norm_hand(*a, first=first, second=second)

    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "means over space alone": (along((1,), (1,)), ("missing-sum",)),
        "the variance's path over channels alone": (along((1, 3), (3,)), ("missing-sum",)),
        "means over the batch as well": (along((0, 1, 3), (0, 1, 3)), ("extra-path",)),
    }
    args = normal(2, 3, 4, 6), 1 + 0.3 * normal(6), normal(6)
    return Exhibit("group norm of images", group_norm, args, group_norm_hand, faults)


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_layer_norm(), _rms_norm(), _batch_norm(), _group_norm()]
