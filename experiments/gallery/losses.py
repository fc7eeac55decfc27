"""Softmax, losses, and a temperature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal, replace


def softmax(x: Any) -> Any:
    e = jnp.exp(x - jax.lax.stop_gradient(x.max(-1, keepdims=True)))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def softmax_hand(x: Any, dy: Any) -> Any:
    y = softmax(x)
    return (y * (dy - (dy * y).sum(-1, keepdims=True)),)


def _softmax() -> Exhibit:
    def own(x: Any, dy: Any) -> Any:
        y = softmax(x)
        return (dy * y * (1 - y),)

    def numerator(x: Any, dy: Any) -> Any:
        return (dy * softmax(x),)

    def wrong_axis(x: Any, dy: Any) -> Any:
        y = softmax(x)
        return (y * (dy - (dy * y).sum(0, keepdims=True)),)

    faults = {
        "the second path (the slip of the notes)": (own, ("missing-path",)),
        "the path through the denominator": (numerator, ("missing-path",)),
        "summed over the wrong axis": (wrong_axis, ("transpose",)),
        "nan where a probability is small": (
            edit(
                softmax_hand,
                replace(0, lambda g, x, dy: g * jnp.log(softmax(x) - 1e-2) / jnp.log(softmax(x) - 1e-2)),
            ),
            ("nan",),
        ),
    }
    return Exhibit("softmax", softmax, (2 * normal(6, 5),), softmax_hand, faults)


def squared_error(p: Any, y: Any) -> Any:
    return jnp.sum((p - y) ** 2) / p.shape[0]


def squared_error_hand(p: Any, y: Any, g: Any) -> Any:
    d = 2 * (p - y) / p.shape[0] * g
    return d, -d


def _squared_error() -> Exhibit:
    faults = {
        "the 2": (edit(squared_error_hand, lambda g, *a: (g[0] / 2, g[1] / 2)), ("scale",)),
        "the mean": (
            edit(squared_error_hand, lambda g, p, *a: (g[0] * p.shape[0], g[1] * p.shape[0])),
            ("scale",),
        ),
        "the sign of the second": (
            edit(squared_error_hand, lambda g, *a: (g[0], -g[1])),
            ("sign", "swapped"),
        ),
        "the cotangent": (lambda p, y, g: squared_error_hand(p, y, jnp.ones_like(g)), ("stale",)),
        "only the first example": (
            edit(squared_error_hand, replace(0, lambda d, p, *a: d.at[1:].set(0))),
            ("missing-rows",),
        ),
    }
    return Exhibit(
        "squared error", squared_error, (normal(6, 3), normal(6, 3, seed=1)), squared_error_hand, faults
    )


LABELS = jnp.asarray([0, 2, 1, 3, 3, 0])


def cross_entropy(a: Any) -> Any:
    y = 0.9 * jax.nn.one_hot(LABELS, 4, dtype=a.dtype) + 0.1 / 4
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(a, axis=-1), axis=-1))


def cross_entropy_hand(
    a: Any, g: Any, smoothing: float = 0.1, mean: bool = True, part: float = 1.0
) -> Any:
    y = (1 - smoothing) * jax.nn.one_hot(LABELS, 4, dtype=a.dtype) + smoothing / 4
    d = (part * jax.nn.softmax(a, axis=-1) - y) * g
    return (d / a.shape[0] if mean else d,)


def _cross_entropy() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "a sum in the place of the mean": (lambda *a: cross_entropy_hand(*a, mean=False), ("scale",)),
        "label smoothing": (
            lambda *a: cross_entropy_hand(*a, smoothing=0.0),
            ("wrong-point", "missing-path"),
        ),
        "the path through the normaliser": (
            lambda *a: cross_entropy_hand(*a, part=0.0),
            ("missing-path",),
        ),
        "the sign": (edit(cross_entropy_hand, lambda g, *a: (-g[0],)), ("sign",)),
    }
    return Exhibit("cross-entropy", cross_entropy, (normal(6, 4),), cross_entropy_hand, faults)


def temperature(a: Any, t: Any) -> Any:
    return jax.nn.log_softmax(a / t, axis=-1)


def temperature_hand(a: Any, t: Any, dy: Any, divide: bool = True) -> Any:
    z = jax.nn.log_softmax(a / t, axis=-1)
    d = dy - jnp.exp(z) * dy.sum(-1, keepdims=True)
    return d / t if divide else d, -jnp.sum(d * a) / t**2


def _temperature() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "division by the temperature": (lambda *a: temperature_hand(*a, divide=False), ("scale",)),
        "one power of it": (edit(temperature_hand, lambda g, a, t, *r: (g[0], g[1] * t)), ("scale",)),
    }
    return Exhibit("temperature", temperature, (normal(5, 4), jnp.float32(1.7)), temperature_hand, faults)


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_softmax(), _squared_error(), _cross_entropy(), _temperature()]
