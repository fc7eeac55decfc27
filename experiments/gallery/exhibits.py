"""Gradients written by hand, right and wrong: what the checker, and other checkers, are measured on.

Every `Exhibit` is a function with arguments and a right gradient; `faults` are wrong ones, each with the
causes that name it (one of them is enough: some slips have two true names).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Hand = Callable[..., Any]


@dataclass(frozen=True)
class Exhibit:
    """`fn(*args)`, a right `hand(*args, dy)`, and wrong ones by name: `(hand, causes)`."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    hand: Hand
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = field(default_factory=dict)


def _normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def _scale(grads: Any, i: int, k: Any) -> Any:
    return tuple(g * k if n == i else g for n, g in enumerate(grads))


def _edit(hand: Hand, change: Callable[..., Any]) -> Hand:
    """A hand-written gradient, changed afterwards: `change(grads, *args)`."""
    return lambda *args: change(tuple(hand(*args)), *args)


def _replace(i: int, fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda grads, *args: tuple(fn(g, *args) if n == i else g for n, g in enumerate(grads))


# --- dense --------------------------------------------------------------------------------------------


def dense(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b[None, :]


def dense_hand(x: Any, w: Any, b: Any, dy: Any) -> Any:
    return dy @ w.T, x.T @ dy, dy.sum(0)


def _dense() -> Exhibit:
    faults = {
        "sign of db": (_edit(dense_hand, _replace(2, lambda g, *a: -g)), ("sign",)),
        "dw averaged over the batch": (
            _edit(dense_hand, _replace(1, lambda g, x, *a: g / x.shape[0])),
            ("scale",),
        ),
        "dw doubled": (_edit(dense_hand, _replace(1, lambda g, *a: 2 * g)), ("scale",)),
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
            _edit(dense_hand, _replace(1, lambda g, *a: g * jnp.asarray(1.001, g.dtype))),
            ("scale",),
        ),
    }
    return Exhibit("dense", dense, (_normal(7, 5), _normal(5, 5, seed=1), _normal(5)), dense_hand, faults)


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
        "dx and dw exchanged": (_edit(two_uses_hand, lambda g, *a: (g[1], g[0], g[2])), ("swapped",)),
        "derivative at the wrong layer's value": (shape_state, ("wrong-point", "wrong-activation")),
    }
    return Exhibit(
        "shared weight",
        two_uses,
        (_normal(4, 4), _normal(4, 4, seed=2), _normal(4, 3)),
        two_uses_hand,
        faults,
    )


# --- activations --------------------------------------------------------------------------------------


def gelu_mlp(x: Any, w: Any) -> Any:
    return jax.nn.gelu(x @ w, approximate=True)


def _gelu_slope(a: Any, exact: bool) -> Any:
    return jax.vmap(jax.vmap(jax.grad(lambda t: jax.nn.gelu(t, approximate=not exact))))(a)


def gelu_hand(x: Any, w: Any, dy: Any, exact: bool = False) -> Any:
    da = dy * _gelu_slope(x @ w, exact)
    return da @ w.T, x.T @ da


def _gelu() -> Exhibit:
    def at_output(x: Any, w: Any, dy: Any) -> Any:
        da = dy * _gelu_slope(gelu_mlp(x, w), False)
        return da @ w.T, x.T @ da

    def forgotten(x: Any, w: Any, dy: Any) -> Any:
        return dy @ w.T, x.T @ dy

    faults = {
        "the exact form's derivative": (lambda *a: gelu_hand(*a, exact=True), ("wrong-activation",)),
        "derivative at the output": (at_output, ("wrong-point",)),
        "derivative forgotten": (forgotten, ("wrong-activation", "missing-path")),
    }
    return Exhibit("gelu", gelu_mlp, (_normal(6, 4), _normal(4, 5)), gelu_hand, faults)


def sigmoid_net(x: Any, w: Any) -> Any:
    return jax.nn.sigmoid(x @ w)


def sigmoid_hand(x: Any, w: Any, dy: Any) -> Any:
    h = jax.nn.sigmoid(x @ w)
    da = dy * h * (1 - h)
    return da @ w.T, x.T @ da


def _sigmoid() -> Exhibit:
    def at_input(x: Any, w: Any, dy: Any) -> Any:
        a = x @ w
        da = dy * a * (1 - a)
        return da @ w.T, x.T @ da

    def of_tanh(x: Any, w: Any, dy: Any) -> Any:
        h = jax.nn.sigmoid(x @ w)
        da = dy * (1 - h * h)
        return da @ w.T, x.T @ da

    def only_positive(x: Any, w: Any, dy: Any) -> Any:
        h = jax.nn.sigmoid(x @ w)
        da = dy * jnp.where(x @ w > 0, h * (1 - h), 0)
        return da @ w.T, x.T @ da

    faults = {
        "h(1 - h) taken at the input": (at_input, ("wrong-point",)),
        "tanh's formula": (of_tanh, ("wrong-activation",)),
        "nothing for negative inputs": (only_positive, ("missing-rows",)),
    }
    return Exhibit(
        "sigmoid", sigmoid_net, (_normal(6, 4, seed=3), _normal(4, 5, seed=3)), sigmoid_hand, faults
    )


# --- norms --------------------------------------------------------------------------------------------


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
            _edit(layer_norm_hand, _replace(1, lambda g, x, s, b, dy: dy.sum(0))),
            ("wrong-point", "scale", "missing-path", "swapped"),
        ),
        "dscale over the wrong axis": (
            lambda x, g, b, dy: (*layer_norm_hand(x, g, b, dy)[:1], (dy * x).sum(1), dy.sum(0)),
            ("shape",),
        ),
        "doffset of the mean": (
            _edit(layer_norm_hand, _replace(2, lambda g, x, *a: g / x.shape[0])),
            ("scale",),
        ),
    }
    return Exhibit(
        "layer norm",
        layer_norm,
        (_normal(6, 5), jnp.ones(5, jnp.float32), jnp.zeros(5, jnp.float32)),
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
    return Exhibit("rms norm", rms_norm, (_normal(6, 5), 1 + 0.1 * _normal(5)), rms_norm_hand, faults)


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
            _edit(batch_norm_hand, _replace(1, lambda g, x, *a: g * x.shape[0])),
            ("scale",),
        ),
    }
    return Exhibit(
        "batch norm", batch_norm, (_normal(8, 3), 1 + 0.2 * _normal(3)), batch_norm_hand, faults
    )


# --- softmax and losses -------------------------------------------------------------------------------


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
            _edit(
                softmax_hand,
                _replace(0, lambda g, x, dy: g * jnp.log(softmax(x) - 1e-2) / jnp.log(softmax(x) - 1e-2)),
            ),
            ("nan",),
        ),
    }
    return Exhibit("softmax", softmax, (2 * _normal(6, 5),), softmax_hand, faults)


def squared_error(p: Any, y: Any) -> Any:
    return jnp.sum((p - y) ** 2) / p.shape[0]


def squared_error_hand(p: Any, y: Any, g: Any) -> Any:
    d = 2 * (p - y) / p.shape[0] * g
    return d, -d


def _squared_error() -> Exhibit:
    faults = {
        "the 2": (_edit(squared_error_hand, lambda g, *a: (g[0] / 2, g[1] / 2)), ("scale",)),
        "the mean": (
            _edit(squared_error_hand, lambda g, p, *a: (g[0] * p.shape[0], g[1] * p.shape[0])),
            ("scale",),
        ),
        "the sign of the second": (
            _edit(squared_error_hand, lambda g, *a: (g[0], -g[1])),
            ("sign", "swapped"),
        ),
        "the cotangent": (lambda p, y, g: squared_error_hand(p, y, jnp.ones_like(g)), ("stale",)),
        "only the first example": (
            _edit(squared_error_hand, _replace(0, lambda d, p, *a: d.at[1:].set(0))),
            ("missing-rows",),
        ),
    }
    return Exhibit(
        "squared error", squared_error, (_normal(6, 3), _normal(6, 3, seed=1)), squared_error_hand, faults
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
        "the sign": (_edit(cross_entropy_hand, lambda g, *a: (-g[0],)), ("sign",)),
    }
    return Exhibit("cross-entropy", cross_entropy, (_normal(6, 4),), cross_entropy_hand, faults)


def temperature(a: Any, t: Any) -> Any:
    return jax.nn.log_softmax(a / t, axis=-1)


def temperature_hand(a: Any, t: Any, dy: Any, divide: bool = True) -> Any:
    z = jax.nn.log_softmax(a / t, axis=-1)
    d = dy - jnp.exp(z) * dy.sum(-1, keepdims=True)
    return d / t if divide else d, -jnp.sum(d * a) / t**2


def _temperature() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "division by the temperature": (lambda *a: temperature_hand(*a, divide=False), ("scale",)),
        "one power of it": (_edit(temperature_hand, lambda g, a, t, *r: (g[0], g[1] * t)), ("scale",)),
    }
    return Exhibit(
        "temperature", temperature, (_normal(5, 4), jnp.float32(1.7)), temperature_hand, faults
    )


# --- attention ----------------------------------------------------------------------------------------


def attention(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.T / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
    p = jax.nn.softmax(jnp.where(_causal(len(q)), s, -1e9), axis=-1)
    return p @ v


def _causal(n: int) -> Any:
    return jnp.arange(n)[:, None] >= jnp.arange(n)[None, :]


def attention_hand(q: Any, k: Any, v: Any, dy: Any, scaled: bool = True, coupled: float = 1.0) -> Any:
    root = jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
    p = jax.nn.softmax(jnp.where(_causal(len(q)), q @ k.T / root, -1e9), axis=-1)
    dp = dy @ v.T
    ds = p * (dp - coupled * (dp * p).sum(-1, keepdims=True))
    ds = ds / root if scaled else ds
    return ds @ k, ds.T @ q, p.T @ dy


def _attention() -> Exhibit:
    def no_transpose(q: Any, k: Any, v: Any, dy: Any) -> Any:
        dq, dk, _ = attention_hand(q, k, v, dy)
        p = jax.nn.softmax(
            jnp.where(_causal(len(q)), q @ k.T / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype)), -1e9),
            axis=-1,
        )
        return dq, dk, p @ dy

    faults = {
        "√d": (lambda *a: attention_hand(*a, scaled=False), ("scale",)),
        "the softmax's second term": (lambda *a: attention_hand(*a, coupled=0.0), ("missing-path",)),
        "dk and dv exchanged": (_edit(attention_hand, lambda g, *a: (g[0], g[2], g[1])), ("swapped",)),
        "dv without a transpose": (no_transpose, ("transpose",)),
        "dq of half the heads": (
            _edit(attention_hand, _replace(0, lambda g, *a: g.at[:, 2:].set(0))),
            ("missing-rows",),
        ),
    }
    return Exhibit(
        "attention",
        attention,
        (_normal(6, 4), _normal(6, 4, seed=1), _normal(6, 4, seed=2)),
        attention_hand,
        faults,
    )


# --- convolution and pooling --------------------------------------------------------------------------


def conv(x: Any, k: Any) -> Any:
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_hand(x: Any, k: Any, dy: Any, flip: bool = True, turn: bool = True) -> Any:
    back = k[::-1, ::-1] if flip else k
    dx = conv(dy, jnp.swapaxes(back, 2, 3) if turn else back)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    taps = [
        jnp.einsum("nhwi,nhwo->io", padded[:, i : i + rows, j : j + columns], dy)
        for i in range(3)
        for j in range(3)
    ]
    return dx, jnp.stack(taps).reshape(k.shape)


def _conv() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "kernel not reversed": (lambda *a: conv_hand(*a, flip=False), ("flip",)),
        "channels not exchanged": (lambda *a: conv_hand(*a, turn=False), ("transpose",)),
        "dk reversed": (_edit(conv_hand, lambda g, *a: (g[0], g[1][::-1, ::-1])), ("flip",)),
        "dk with its height and width exchanged": (
            _edit(conv_hand, lambda g, *a: (g[0], jnp.swapaxes(g[1], 0, 1))),
            ("transpose",),
        ),
        "dk of the first image alone": (
            lambda x, k, dy: (conv_hand(x, k, dy)[0], conv_hand(x[:1], k, dy[:1])[1]),
            ("missing-sum", "missing-rows"),
        ),
    }
    return Exhibit("convolution", conv, (_normal(3, 5, 4, 2), _normal(3, 3, 2, 2)), conv_hand, faults)


def max_pool(x: Any) -> Any:
    return x.reshape(len(x), -1, 2).max(-1)


def max_pool_hand(x: Any, dy: Any) -> Any:
    pairs = x.reshape(len(x), -1, 2)
    return (jnp.where(pairs == pairs.max(-1, keepdims=True), dy[..., None], 0).reshape(x.shape),)


def _max_pool() -> Exhibit:
    def average(x: Any, dy: Any) -> Any:
        return (jnp.repeat(dy, 2, axis=-1) / 2,)

    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the average's gradient": (average, ("wrong-activation",)),
        "no mask": (lambda x, dy: (jnp.repeat(dy, 2, axis=-1),), ("wrong-activation",)),
        "order reversed": (_edit(max_pool_hand, lambda g, *a: (g[0][:, ::-1],)), ("flip",)),
    }
    return Exhibit("max pool", max_pool, (_normal(4, 6),), max_pool_hand, faults)


# --- recurrence ---------------------------------------------------------------------------------------


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
            _edit(rnn_hand, lambda g, *a: (g[0][::-1], g[1], g[2])),
            ("flip",),
        ),
        "dx one step late": (
            _edit(rnn_hand, lambda g, *a: (jnp.roll(g[0], 1, 0), g[1], g[2])),
            ("missing-rows",),
        ),
    }
    return Exhibit(
        "recurrence",
        rnn,
        (_normal(5, 3, 4), 0.6 * _normal(4, 4), 0.6 * _normal(4, 4, seed=1)),
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
            _edit(cumulative_hand, lambda g, x, a, dy: (g[0], g[0] * x)),
            ("shape", "missing-sum"),
        ),
        "no decay on the way back": (
            lambda x, a, dy: (jnp.cumsum(dy[::-1], 0)[::-1], cumulative_hand(x, a, dy)[1]),
            ("scale", "missing-rows"),
        ),
    }
    return Exhibit(
        "leaky sum",
        cumulative,
        (_normal(6, 3), jnp.asarray([0.5, 0.8, 0.9], jnp.float32)),
        cumulative_hand,
        faults,
    )


# --- embedding, masks ---------------------------------------------------------------------------------

TOKENS = jnp.asarray([[0, 3, 3], [1, 0, 3]])


def embedding(table: Any) -> Any:
    return table[TOKENS]


def embedding_hand(table: Any, dy: Any) -> Any:
    return (jnp.zeros_like(table).at[TOKENS].add(dy),)


def _embedding() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "repeated tokens overwrite": (
            lambda t, dy: (jnp.zeros_like(t).at[TOKENS].set(dy),),
            ("missing-rows",),
        ),
        "token 0 taken as padding": (
            _edit(embedding_hand, lambda g, *a: (g[0].at[0].set(0),)),
            ("missing-rows",),
        ),
        "averaged": (_edit(embedding_hand, lambda g, *a: (g[0] / 6,)), ("scale",)),
    }
    return Exhibit("embedding", embedding, (_normal(5, 4),), embedding_hand, faults)


MASK = jnp.asarray([[1, 1, 0], [1, 0, 0], [1, 1, 1]])


def masked_mean(x: Any, s: Any) -> Any:
    mask = MASK.astype(x.dtype)[..., None]
    return (jnp.tanh(x * s) * mask).sum(1) / mask.sum(1)


def masked_mean_hand(x: Any, s: Any, dy: Any, mask_on: bool = True, divide: int = 1) -> Any:
    mask = MASK.astype(x.dtype)[..., None]
    h = jnp.tanh(x * s)
    d = (dy / mask.sum(1) ** divide)[:, None, :] * (mask if mask_on else 1) * (1 - h * h)
    return d * s, jnp.sum(d * x)


def _masked_mean() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the mask": (lambda *a: masked_mean_hand(*a, mask_on=False), ("missing-rows",)),
        "division by the count": (lambda *a: masked_mean_hand(*a, divide=0), ("scale", "missing-rows")),
        "division by the count, twice": (
            lambda *a: masked_mean_hand(*a, divide=2),
            ("scale", "missing-rows"),
        ),
    }
    return Exhibit(
        "masked mean", masked_mean, (_normal(3, 3, 2), jnp.float32(0.8)), masked_mean_hand, faults
    )


# --- a kernel, an ODE step, physics -------------------------------------------------------------------


def blocked_sum(x: Any) -> Any:
    """A blocked sum of squares as a Pallas kernel in interpret mode."""
    from jax.experimental import pallas as pl

    def kernel(x_ref: Any, o_ref: Any) -> None:
        o_ref[...] = jnp.sum(x_ref[...] ** 2, axis=1, keepdims=True)

    rows, columns = x.shape
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows, columns // 4), x.dtype),
        grid=(rows, columns // 4),
        in_specs=[pl.BlockSpec((1, 4), lambda i, j: (i, j))],
        out_specs=pl.BlockSpec((1, 1), lambda i, j: (i, j)),
        interpret=True,
    )(x)


def blocked_sum_hand(x: Any, dy: Any) -> Any:
    return (2 * x * jnp.repeat(dy, 4, axis=1),)


def _blocked_sum() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the 2": (lambda x, dy: (x * jnp.repeat(dy, 4, axis=1),), ("scale",)),
        "the last block": (
            _edit(blocked_sum_hand, lambda g, *a: (g[0].at[:, 4:].set(0),)),
            ("missing-rows",),
        ),
        "blocks interleaved": (
            lambda x, dy: (2 * x * jnp.tile(dy, (1, 4)),),
            ("transpose", "missing-rows"),
        ),
    }
    return Exhibit("blocked sum kernel", blocked_sum, (_normal(3, 8),), blocked_sum_hand, faults)


def ode_step(y: Any, w: Any, dt: Any) -> Any:
    middle = y + 0.5 * dt * jnp.sin(y @ w)
    return y + dt * jnp.sin(middle @ w)


def ode_hand(
    y: Any, w: Any, dt: Any, g: Any, direct: float = 1.0, inner: float = 1.0, half: float = 0.5
) -> Any:
    a = y @ w
    m = y + 0.5 * dt * jnp.sin(a)
    b = m @ w
    db = g * dt * jnp.cos(b)
    dm = db @ w.T
    da = half * dt * dm * jnp.cos(a)
    ddt = jnp.sum(g * jnp.sin(b)) + inner * jnp.sum(0.5 * dm * jnp.sin(a))
    return direct * g + dm + da @ w.T, m.T @ db + y.T @ da, ddt


def _ode() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the direct path": (lambda *a: ode_hand(*a, direct=0.0), ("missing-path",)),
        "the midpoint's step in ddt": (lambda *a: ode_hand(*a, inner=0.0), ("missing-path",)),
        "the half of the first stage": (lambda *a: ode_hand(*a, half=1.0), ("scale", "extra-path")),
        "ddt negated": (_edit(ode_hand, lambda g, *a: (g[0], g[1], -g[2])), ("sign",)),
    }
    return Exhibit(
        "ode step", ode_step, (_normal(4, 3), _normal(3, 3), jnp.float32(0.3)), ode_hand, faults
    )


def lennard_jones(r: Any, e: Any) -> Any:
    s = (1.1 / r) ** 6
    return 4 * e * (s * s - s)


def lennard_jones_hand(r: Any, e: Any, dy: Any, attraction: float = 1.0, power: float = 1.0) -> Any:
    s = (1.1 / r) ** 6
    return dy * 4 * e * (-12 * s * s + attraction * 6 * s) / r**power, jnp.sum(dy * 4 * (s * s - s))


def _physics() -> Exhibit:
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = {
        "the attraction": (lambda *a: lennard_jones_hand(*a, attraction=0.0), ("missing-path",)),
        "the attraction's sign": (lambda *a: lennard_jones_hand(*a, attraction=-1.0), ("sign",)),
        "the force negated": (_edit(lennard_jones_hand, lambda g, *a: (-g[0], g[1])), ("sign",)),
        "de not summed": (
            lambda r, e, dy: (
                lennard_jones_hand(r, e, dy)[0],
                dy * 4 * ((1.1 / r) ** 12 - (1.1 / r) ** 6),
            ),
            ("missing-sum",),
        ),
    }
    distances = jnp.asarray([0.95, 1.2, 1.5, 1.1, 2.0], jnp.float32)
    return Exhibit(
        "lennard-jones", lennard_jones, (distances, jnp.float32(0.7)), lennard_jones_hand, faults
    )


def exhibits() -> list[Exhibit]:
    """All of them."""
    return [
        _dense(),
        _two_uses(),
        _gelu(),
        _sigmoid(),
        _layer_norm(),
        _rms_norm(),
        _batch_norm(),
        _softmax(),
        _squared_error(),
        _cross_entropy(),
        _temperature(),
        _attention(),
        _conv(),
        _max_pool(),
        _rnn(),
        _cumulative(),
        _embedding(),
        _masked_mean(),
        _blocked_sum(),
        _ode(),
        _physics(),
    ]
