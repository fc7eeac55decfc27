"""Along a sequence: running sums, taps, a gated recurrence, steps of an ODE, messages on a graph."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.gallery.common import Exhibit, Hand, edit, normal, replace


def running_sum(x: Any) -> Any:
    return jnp.tanh(jnp.cumsum(x, axis=0))


def running_sum_hand(x: Any, dy: Any, forwards: bool = False) -> Any:
    d = dy * (1 - running_sum(x) ** 2)
    return (jnp.cumsum(d, 0) if forwards else jnp.cumsum(d[::-1], 0)[::-1],)


def _running_sum() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "summed up forwards": (lambda *a: running_sum_hand(*a, forwards=True), ("flip",)),
        "each step's own error alone": (
            lambda x, dy: (dy * (1 - running_sum(x) ** 2),),
            ("missing-rows", "missing-path", "missing-sum"),
        ),
    }
    return Exhibit("running sum", running_sum, (0.5 * normal(5, 3),), running_sum_hand, faults)


def taps(x: Any, k: Any) -> Any:
    """A causal filter, one tap after the other."""
    count = len(k)
    padded = jnp.pad(x, ((count - 1, 0), (0, 0)))
    return sum(padded[i : i + len(x)] @ k[i] for i in range(count))


def taps_hand(x: Any, k: Any, dy: Any, turn: bool = True, order: int = 1, late: int = 0) -> Any:
    count, length = len(k), len(x)
    padded = jnp.pad(dy, ((0, count - 1), (0, 0)))
    kernel = k[::order]
    dx = sum(
        padded[count - 1 - i :][:length] @ (kernel[i].T if turn else kernel[i]) for i in range(count)
    )
    seen = jnp.pad(jnp.roll(x, late, 0) if late else x, ((count - 1, 0), (0, 0)))
    return dx, jnp.stack([seen[i : i + length].T @ dy for i in range(count)])


def _taps() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "taps in the wrong order": (
            lambda *a: taps_hand(*a, order=-1),
            ("flip", "swapped"),  # of three taps, the first and the last
        ),
        "every tap untransposed": (lambda *a: taps_hand(*a, turn=False), ("transpose",)),
        "dk reversed": (edit(taps_hand, lambda g, *a: (g[0], g[1][::-1])), ("flip",)),
        "one tap of dk": (edit(taps_hand, replace(1, lambda g, *a: g.at[0].set(0))), ("missing-rows",)),
    }
    return Exhibit("taps", taps, (normal(7, 3), normal(3, 3, 3, seed=4)), taps_hand, faults)


def lstm(x: Any, w: Any, u: Any) -> Any:
    state = jnp.zeros((x.shape[1], u.shape[0]), x.dtype)

    def step(carried: Any, x_t: Any) -> Any:
        carried = _cell(carried, x_t, w, u)[0]
        return carried, carried[0]

    return jax.lax.scan(step, (state, state), x)[1]


def _cell(carried: Any, x_t: Any, w: Any, u: Any) -> Any:
    h, c = carried
    i, f, g, o = jnp.split(x_t @ w + h @ u, 4, -1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new = f * c + i * g
    return (o * jnp.tanh(new), new), (h, c, i, f, g, o, new)


def lstm_hand(
    x: Any, w: Any, u: Any, dy: Any, cell: float = 1.0, late: bool = False, sigmoid: bool = False,
    forwards: bool = False,
) -> Any:  # fmt: skip
    zero = jnp.zeros((x.shape[1], u.shape[0]), x.dtype)
    _, kept = jax.lax.scan(lambda s, x_t: _cell(s, x_t, w, u), (zero, zero), x)

    def back(errors: Any, part: Any) -> Any:
        dh, dc = errors
        dy_t, (_, c, i, f, g, o, new) = part
        dh = dh + dy_t
        t = jnp.tanh(new)
        dc = cell * dc + dh * o * (1 - t * t)
        dg = dc * i * (g * (1 - g) if sigmoid else 1 - g * g)
        di, df, do = dc * g * i * (1 - i), dc * (new if late else c) * f * (1 - f), dh * t * o * (1 - o)
        da = jnp.concatenate([di, df, dg, do], -1)
        return (da @ u.T, dc * f), da

    _, da = jax.lax.scan(back, (zero, zero), (dy, kept), reverse=not forwards)
    return da @ w.T, jnp.einsum("tbi,tbo->io", x, da), jnp.einsum("tbi,tbo->io", kept[0], da)


def _lstm() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the path along the cell": (lambda *a: lstm_hand(*a, cell=0.0), ("missing-path",)),
        "the new cell in the forget gate": (
            lambda *a: lstm_hand(*a, late=True),
            ("missing-rows", "wrong-point"),
        ),
        "sigmoid's formula for tanh": (lambda *a: lstm_hand(*a, sigmoid=True), ("wrong-activation",)),
        "the loop run forwards": (lambda *a: lstm_hand(*a, forwards=True), ("flip",)),
    }
    args = (normal(4, 2, 3), 0.5 * normal(3, 16), 0.5 * normal(4, 16))
    return Exhibit("lstm", lstm, args, lstm_hand, faults)


def euler(y: Any, w: Any) -> Any:
    for _ in range(3):
        y = y + 0.3 * jnp.tanh(y @ w)
    return y


def euler_hand(y: Any, w: Any, dy: Any, inner: float = 1.0, turn: bool = True) -> Any:
    kept = []
    for _ in range(3):
        t = jnp.tanh(y @ w)
        kept.append((y, t))
        y = y + 0.3 * t
    dw = jnp.zeros_like(w)
    for before, t in reversed(kept):
        da = 0.3 * dy * (1 - t * t)
        dw = dw + before.T @ da
        dy = dy + inner * (da @ (w.T if turn else w))
    return dy, dw


def _euler() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the error only along the identity": (lambda *a: euler_hand(*a, inner=0.0), ("missing-path",)),
        "weights not transposed, in every step": (lambda *a: euler_hand(*a, turn=False), ("transpose",)),
    }
    return Exhibit("euler", euler, (normal(4, 3), normal(3, 3)), euler_hand, faults)


SENDERS, RECEIVERS = jnp.asarray([0, 1, 2, 3, 0, 2]), jnp.asarray([1, 2, 0, 1, 3, 3])


def messages(x: Any, w: Any) -> Any:
    return jnp.zeros((4, w.shape[1]), x.dtype).at[RECEIVERS].add(jnp.tanh(x @ w)[SENDERS])


def messages_hand(x: Any, w: Any, dy: Any, add: bool = True) -> Any:
    h = jnp.tanh(x @ w)
    zero = jnp.zeros_like(h).at[SENDERS]
    da = (zero.add(dy[RECEIVERS]) if add else zero.set(dy[RECEIVERS])) * (1 - h * h)
    return da @ w.T, x.T @ da


def _messages() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "errors overwrite each other": (
            lambda *a: messages_hand(*a, add=False),
            ("missing-sum", "missing-rows"),
        ),
    }
    return Exhibit("messages", messages, (normal(4, 3), normal(3, 5)), messages_hand, faults)


def exhibits() -> list[Exhibit]:
    """All of this family."""
    return [_running_sum(), _taps(), _lstm(), _euler(), _messages()]
