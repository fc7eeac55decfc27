"""A recurrent network and a leaky sum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal


def rnn(x: Any, w: Any, u: Any) -> Any:
    def step(h: Any, x_t: Any) -> Any:
        h = jnp.tanh(x_t @ w + h @ u)
        return h, h

    return jax.lax.scan(step, jnp.zeros((x.shape[1], u.shape[0]), x.dtype), x)[1]


def rnn_hand(
    x: Any,
    w: Any,
    u: Any,
    dy: Any,
    through: float = 1.0,
    shift: bool = False,
    last: bool = False,
    turned: bool = True,
) -> Any:
    h = rnn(x, w, u)
    before = h if shift else jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def step(dh: Any, part: Any) -> Any:
        dy_t, h_t = part
        da = (dy_t + through * dh) * (1 - h_t * h_t)
        return da @ (u.T if turned else u), da

    _, da = jax.lax.scan(step, jnp.zeros_like(h[0]), (dy, h), reverse=True)
    du = jnp.einsum("tbi,tbo->io", before, da) if not last else before[-1].T @ da[-1]
    return jnp.einsum("tbo,io->tbi", da, w), jnp.einsum("tbi,tbo->io", x, da), du


def _rnn() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the recurrent path": (lambda *a: rnn_hand(*a, through=0.0), ("missing-path",)),
        "one step late": (lambda *a: rnn_hand(*a, shift=True), ("missing-rows", "wrong-point")),
        "du of the last step alone": (
            lambda *a: rnn_hand(*a, last=True),
            ("missing-sum", "missing-rows"),
        ),
        "recurrent weights not transposed": (lambda *a: rnn_hand(*a, turned=False), ("transpose",)),
        "dx in reverse order of time": (
            edit(rnn_hand, lambda g, *a: (g[0][::-1], g[1], g[2])),
            ("flip",),
        ),
        "dx one step late": (
            edit(rnn_hand, lambda g, *a: (jnp.roll(g[0], 1, 0), g[1], g[2])),
            ("missing-rows",),
        ),
    }
    return Exhibit(
        "recurrence",
        rnn,
        (normal(5, 3, 4), 0.6 * normal(4, 4), 0.6 * normal(4, 4, seed=1)),
        rnn_hand,
        faults,
    )


def cumulative(x: Any, a: Any) -> Any:
    def step(s: Any, v: Any) -> Any:
        s = a * s + v
        return s, s

    return jax.lax.scan(step, jnp.zeros(x.shape[1], x.dtype), x)[1]


def cumulative_hand(x: Any, a: Any, dy: Any) -> Any:
    _, dx = jax.lax.scan(lambda d, g: (a * d + g, a * d + g), jnp.zeros_like(x[0]), dy, reverse=True)
    y = cumulative(x, a)
    before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
    return dx, (dx * before).sum(0)


def _cumulative() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "da in the shape of the state": (
            edit(cumulative_hand, lambda g, x, a, dy: (g[0], g[0] * x)),
            ("shape", "missing-sum"),
        ),
        "no decay on the way back": (
            lambda x, a, dy: (jnp.cumsum(dy[::-1], 0)[::-1], cumulative_hand(x, a, dy)[1]),
            ("missing-path", "scale"),
        ),
    }
    return Exhibit(
        "leaky sum",
        cumulative,
        (normal(6, 3), jnp.asarray([0.5, 0.8, 0.9], jnp.float32)),
        cumulative_hand,
        faults,
    )


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_rnn(), _cumulative()]
