"""Closed forms, as derivations on paper end, with the slips of paper: a factor, a sum, a value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, normal


def softmax(x: Any) -> Any:
    return jax.nn.softmax(x, -1)


def _softmax() -> Exhibit:
    def hand(axis: int = -1, under: bool = True, front: bool = True, mean: bool = False) -> Hand:
        def gradient(x: Any, dy: Any) -> Any:
            p = softmax(x)
            total = (jnp.mean if mean else jnp.sum)((p if under else 1) * dy, axis, keepdims=True)
            return (p * dy - (p if front else 1) * total,)

        return gradient

    faults = {
        "the sum over the wrong axis": (hand(axis=0), ("transpose",)),
        "p left out under the sum": (hand(under=False), ("scale",)),
        "p left out in front of the sum": (hand(front=False), ("scale",)),
        "a mean for the sum": (hand(mean=True), ("scale",)),
    }
    return Exhibit("softmax, closed form", softmax, (normal(4, 6),), hand(), faults)


def log_softmax(x: Any) -> Any:
    return jax.nn.log_softmax(x, -1)


def _log_softmax() -> Exhibit:
    def hand(inside: bool = False) -> Hand:
        def gradient(x: Any, dy: Any) -> Any:
            p = softmax(x)
            if inside:
                return (dy - (p * dy).sum(-1, keepdims=True),)
            return (dy - p * dy.sum(-1, keepdims=True),)

        return gradient

    faults = {"p moved under the sum": (hand(True), ("transpose",))}
    return Exhibit("log-softmax, closed form", log_softmax, (normal(4, 6),), hand(), faults)


def log_sum_exp(x: Any) -> Any:
    return jax.nn.logsumexp(x, 0)


def _log_sum_exp() -> Exhibit:
    faults = {
        "the softmax along the other axis": (
            lambda x, dy: (jax.nn.softmax(x, 1) * dy[None],),
            ("transpose",),
        ),
        "no softmax": (lambda x, dy: (jnp.broadcast_to(dy, x.shape),), ("scale",)),
        "exp without its sum": (lambda x, dy: (jnp.exp(x) * dy[None],), ("scale",)),
        "the largest entry alone": (
            lambda x, dy: ((x == x.max(0, keepdims=True)) * dy[None],),
            ("wrong-activation",),
        ),
    }
    right: Hand = lambda x, dy: (jax.nn.softmax(x, 0) * dy[None],)  # noqa: E731
    return Exhibit("log-sum-exp", log_sum_exp, (normal(4, 6, seed=1),), right, faults)


def standardise(x: Any, g: Any) -> Any:
    return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5) * g[None]


def _standardise() -> Exhibit:
    def hand(slip: str = "") -> Hand:
        def gradient(x: Any, g: Any, dy: Any) -> Any:
            r = 1 / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
            z, d = (x - x.mean(0, keepdims=True)) * r, dy * g[None]
            axis, inner = (1 if slip == "axis" else 0), (dy if slip == "dy" else d)
            mean = inner.mean(axis, keepdims=True)
            product = (inner * (x if slip == "x under" else z)).mean(axis, keepdims=True)
            outer = x if slip == "x in front" else z
            if slip == "r":
                return r * d - mean - outer * product, (dy * z).sum(0)
            return r * (d - mean - outer * product), (dy * z).sum(0)

        return gradient

    faults = {
        "means over the wrong axis": (hand("axis"), ("transpose",)),
        "dy for dx̂ under the sums": (hand("dy"), ("scale",)),
        "x for x̂ under the sum": (hand("x under"), ("wrong-point",)),
        "x for x̂ in front of the sum": (hand("x in front"), ("wrong-point",)),
        "1/σ in front of the first term alone": (hand("r"), ("scale",)),
    }
    args = (normal(6, 4) + 0.3, normal(4, seed=1) + 1.5)
    return Exhibit("batch norm, closed form", standardise, args, hand(), faults)


def cosine(a: Any, b: Any) -> Any:
    return (a * b).sum(-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def _cosine() -> Exhibit:
    def hand(divided: bool = True) -> Hand:
        def gradient(a: Any, b: Any, dy: Any) -> Any:
            m, n = (jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
            c, over = cosine(a, b)[:, None], (m * n if divided else 1)
            da = (b - c * n / m * a) / over
            return dy[:, None] * da, dy[:, None] * (a - c * m / n * b) / over

        return gradient

    faults = {"the lengths left out": (hand(divided=False), ("scale",))}
    return Exhibit("cosine", cosine, (normal(4, 3), normal(4, 3, seed=1)), hand(), faults)


def exhibits() -> list[Exhibit]:
    return [_softmax(), _log_softmax(), _log_sum_exp(), _standardise(), _cosine()]
