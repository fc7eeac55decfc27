"""Linear systems, look-ups, permutations, gates: where an error has to go to the right place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gallery.common import Exhibit, Hand, edit, normal, replace


def solve(a: Any, b: Any) -> Any:
    return jnp.linalg.solve(a, b)


def _solve() -> Exhibit:
    def hand(slip: str = "") -> Hand:
        def gradient(a: Any, b: Any, dy: Any) -> Any:
            e = solve(a if slip == "again" else a.T, dy)
            return -jnp.outer(e, b if slip == "b" else solve(a, b)), e

        return gradient

    faults = {
        "solved with A again": (hand("again"), ("transpose",)),
        "b in the place of x": (hand("b"), ("wrong-point",)),
        "dA transposed": (edit(hand(), replace(0, lambda g, *a: g.T)), ("transpose",)),
    }
    args = (normal(5, 5) + 3 * jnp.eye(5, dtype=jnp.float32), normal(5))
    return Exhibit("linear system", solve, args, hand(), faults)


def quantiles(x: Any, w: Any) -> Any:
    return jnp.sort(x, -1) @ w


def _quantiles() -> Exhibit:
    def hand(slip: str = "") -> Hand:
        def gradient(x: Any, w: Any, dy: Any) -> Any:
            order, d = jnp.argsort(x, -1), jnp.outer(dy, w)
            back = order if slip == "order" else jnp.argsort(order, -1)
            dx = d if slip == "none" else jnp.take_along_axis(d, back, -1)
            return dx, jnp.sort(x, -1).T @ dy

        return gradient

    faults = {
        "left in sorted order": (hand("none"), ("transpose",)),
        "the permutation for its inverse": (hand("order"), ("transpose",)),
    }
    return Exhibit("weighted quantiles", quantiles, (normal(3, 5), normal(5)), hand(), faults)


SENDERS, RECEIVERS = np.array([0, 0, 1, 2, 3, 4, 4]), np.array([1, 2, 2, 3, 0, 0, 2])


def edges(x: Any, w: Any) -> Any:
    m = jnp.tanh(x[SENDERS] - x[RECEIVERS]) @ w
    return jnp.zeros((5, w.shape[1]), m.dtype).at[RECEIVERS].add(m)


def _edges() -> Exhibit:
    def hand(slip: str = "") -> Hand:
        def gradient(x: Any, w: Any, dy: Any) -> Any:
            t = jnp.tanh(x[SENDERS] - x[RECEIVERS])
            dm = dy[SENDERS if slip == "senders" else RECEIVERS]
            d = (dm @ w.T) * (1 - t * t)
            into = jnp.zeros_like(x)
            into = into.at[SENDERS].set(d) if slip == "set" else into.at[SENDERS].add(d)
            return into.at[RECEIVERS].add(-d), t.T @ dm

        return gradient

    faults = {
        "errors looked up at the senders": (hand("senders"), ("wrong-point",)),
        "errors at the senders overwritten": (hand("set"), ("missing-sum", "missing-rows")),
    }
    return Exhibit("edges of a graph", edges, (normal(5, 3), normal(3, 4)), hand(), faults)


def gates(x: Any, w: Any) -> Any:
    z = x @ w
    a, b = jax.nn.sigmoid(z[:, :3]), jax.nn.sigmoid(z[:, 3:])
    return a * (1 - b) + 0.5 * b * b


def _gates() -> Exhibit:
    def hand(exchanged: bool = False) -> Hand:
        def gradient(x: Any, w: Any, dy: Any) -> Any:
            z = x @ w
            a, b = jax.nn.sigmoid(z[:, :3]), jax.nn.sigmoid(z[:, 3:])
            parts = [dy * (1 - b) * a * (1 - a), dy * (b - a) * b * (1 - b)]
            dz = jnp.concatenate(parts[::-1] if exchanged else parts, 1)
            return dz @ w.T, x.T @ dz

        return gradient

    faults = {"the gates' errors exchanged": (hand(True), ("swapped",))}
    return Exhibit("two gates", gates, (normal(4, 5), normal(5, 6)), hand(), faults)


def leapfrog(q: Any, p: Any, h: Any) -> tuple[Any, Any]:
    half = p - h / 2 * jnp.sin(q)
    moved = q + h * half
    return moved, half - h / 2 * jnp.sin(moved)


def _leapfrog() -> Exhibit:
    def hand(early: bool = False) -> Hand:
        def gradient(q: Any, p: Any, h: Any, dy: Any) -> Any:
            half = p - h / 2 * jnp.sin(q)
            moved = q + h * half
            whole = dy[0] - h / 2 * jnp.cos(moved) * dy[1]
            dp = dy[1] + h * (dy[0] if early else whole)
            dq = whole - h / 2 * jnp.cos(q) * dp
            dh = (whole * half - dy[1] * jnp.sin(moved) / 2 - dp * jnp.sin(q) / 2).sum()
            return dq, dp, dh

        return gradient

    faults = {"an error handed on before it is complete": (hand(True), ("missing-path",))}
    args = (normal(5), normal(5, seed=1), jnp.float32(0.3))
    return Exhibit("leapfrog", leapfrog, args, hand(), faults)


OLD = normal(3, 4, seed=9)


def layer(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w)


def _layer() -> Exhibit:
    def hand(old: bool = False) -> Hand:
        def gradient(x: Any, w: Any, dy: Any) -> Any:
            d = dy * (1 - layer(x, w) ** 2)
            return d @ (OLD if old else w).T, x.T @ d

        return gradient

    faults = {"weights of an earlier step": (hand(True), ("stale", "wrong-point"))}
    return Exhibit("dense tanh", layer, (normal(5, 3), normal(3, 4)), hand(), faults)


def distilled(s: Any, t: Any) -> Any:
    return (s * s * s - jax.lax.stop_gradient(t) * s).sum(1)


def _distilled() -> Exhibit:
    faults: dict[str, Any] = {
        "the teacher followed": (
            lambda s, t, dy: (dy[:, None] * (3 * s * s - t), -dy[:, None] * s),
            ("extra-path",),
        )
    }
    right: Hand = lambda s, t, dy: (dy[:, None] * (3 * s * s - t), jnp.zeros_like(t))  # noqa: E731
    return Exhibit("stopped teacher", distilled, (normal(4, 3), normal(4, 3, seed=1)), right, faults)


def exhibits() -> list[Exhibit]:
    return [_solve(), _quantiles(), _edges(), _gates(), _leapfrog(), _layer(), _distilled()]
