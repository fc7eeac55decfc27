"""Loops that Python unrolls: a leaky recurrence, discounted returns, steps of a heat equation."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, normal

LEAK, DISCOUNT = 0.3, 0.9


def leaky(x: Any, u: Any, w: Any, h: Any) -> Any:
    states = []
    for t in range(x.shape[0]):
        h = (1 - LEAK) * h + LEAK * jnp.tanh(x[t] @ u + h @ w)
        states.append(h)
    return jnp.stack(states)


def leaky_hand(x: Any, u: Any, w: Any, h: Any, dy: Any, slip: str = "") -> Any:
    states, bent = [h], []
    for t in range(x.shape[0]):
        bent.append(jnp.tanh(x[t] @ u + states[-1] @ w))
        states.append((1 - LEAK) * states[-1] + LEAK * bent[-1])
    dx, du, dw, dh = [], jnp.zeros_like(u), jnp.zeros_like(w), jnp.zeros_like(h)
    for t in reversed(range(x.shape[0])):
        dh = dh + dy[t]
        saved = states[t + 1] if slip == "state for tanh" else bent[t]
        da = (1 if slip == "leak" else LEAK) * dh * (1 - saved**2)
        dx.append(da @ u.T)
        du = du + (0 if slip == "first turn" and t == 0 else jnp.outer(x[t], da))
        dw = dw + jnp.outer(states[t + 1 if slip == "new state" else t], da)
        dh = (1 - LEAK) * dh + (0 if slip == "recurrent path" else da @ w.T)
    return jnp.stack(dx[::-1]), du, dw, dh


def returns(r: Any, last: Any, done: Any) -> Any:
    g, found = last, []
    for t in reversed(range(r.shape[0])):
        g = r[t] + DISCOUNT * (1 - done[t]) * g
        found.append(g)
    return jnp.stack(found[::-1])


def returns_hand(
    r: Any, last: Any, done: Any, dy: Any, across: bool = False, now: bool = False, turned: bool = False
) -> Any:
    g, after = last, [last] * len(r)
    for t in reversed(range(len(r))):
        after[t] = g
        g = r[t] + DISCOUNT * (1 - done[t]) * g
    d, dr = jnp.zeros_like(last), [last] * len(r)
    for t in reversed(range(len(r))) if turned else range(len(r)):
        d = dy[t] + d
        dr[t] = dy[t] if now else d
        d = d * DISCOUNT * (1 if across else 1 - done[t])
    ddone = [-DISCOUNT * after[t] * dr[t] for t in range(len(r))]
    return jnp.stack(dr), d, jnp.stack(ddone)


def _second(u: Any) -> Any:
    return jnp.roll(u, 1) - 2 * u + jnp.roll(u, -1)


def heat(u: Any, k: Any) -> Any:
    for _ in range(3):
        u = u + k * _second(u)
    return u


def heat_hand(u: Any, k: Any, dy: Any, late: bool = False) -> Any:
    states = [u]
    for _ in range(3):
        states.append(states[-1] + k * _second(states[-1]))
    dk = jnp.zeros_like(k)
    for t in (2, 1, 0):
        dk = dk + jnp.sum(dy * _second(states[t + late]))
        dy = dy + k * _second(dy)
    return dy, dk


def exhibits() -> list[Exhibit]:
    """All of this family."""

    def leak(slip: str) -> Hand:
        return lambda *a: leaky_hand(*a, slip=slip)

    leaks: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the leak": (leak("leak"), ("scale",)),
        "the recurrent path": (leak("recurrent path"), ("missing-path",)),
        "the new state for the old one": (leak("new state"), ("wrong-point", "missing-rows")),
        "the first turn of dU": (leak("first turn"), ("missing-rows",)),
        "tanh at the state": (leak("state for tanh"), ("wrong-point",)),
    }
    across: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "across the ends of episodes": (lambda *a: returns_hand(*a, across=True), ("missing-rows",)),
        "from the last reward to the first": (lambda *a: returns_hand(*a, turned=True), ("flip",)),
        "every reward now": (lambda *a: returns_hand(*a, now=True), ("missing-path", "missing-rows")),
    }
    late: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "after the step": (lambda *a: heat_hand(*a, late=True), ("wrong-point",))
    }
    ends = jnp.asarray([0, 0, 1, 0, 0, 0], jnp.float32)
    return [
        Exhibit(
            "leaky rnn",
            leaky,
            (normal(5, 3), normal(3, 4), 0.5 * normal(4, 4), normal(4)),
            leaky_hand,
            leaks,
        ),
        Exhibit("returns", returns, (normal(6), jnp.float32(0.7), ends), returns_hand, across),
        Exhibit("heat", heat, (normal(7), jnp.float32(0.2)), heat_hand, late),
    ]
