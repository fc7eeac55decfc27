"""Slips that need a function of their own: each is planted here once, beside the right gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp

RNG = np.random.default_rng(20261125)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def pooled(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3), (1, 2), "VALID")


def pooled_hand(x, dy, slip):
    dx = jnp.zeros_like(x)
    for j in range(dy.shape[1]):
        part = jnp.repeat(dy[:, j : j + 1], 3, 1)
        at = dx.at[:, 2 * j : 2 * j + 3]
        dx = at.set(part) if slip else at.add(part)
    return (dx,)


def cholesky_hand(s, dl, slip):
    low = jnp.linalg.cholesky(s)
    inner = jnp.tril(low.T @ jnp.tril(dl))
    inner = inner if slip else inner - jnp.diag(jnp.diag(inner)) / 2
    inverse = jnp.linalg.inv(low)
    g = inverse.T @ inner @ inverse
    return ((g + g.T) / 2,)


def attended(s, v):
    return jax.nn.softmax(s, -1) @ v


def attended_hand(s, v, dy, slip):
    p = jax.nn.softmax(s, -1)
    dp = dy @ v.T
    return p * (dp - (dp * p).sum(-1, keepdims=True)), jax.nn.softmax(s, 0 if slip else -1).T @ dy


def pulled(x, m):
    return ((x[None] - x[:, None]) * m[None, :, None]).sum(1)


def pulled_hand(x, m, dy, slip):
    d = dy[:, None] * m[None, :, None]
    along = (dy[:, None] * (x[None] - x[:, None])).sum(-1)
    return d.sum(0) - d.sum(1), along.sum(1 if slip else 0)


def erased(s, k):
    for t in range(k.shape[0]):
        s = s - 0.5 * jnp.outer(s @ k[t], k[t])
    return s


def erased_hand(s, k, dy, slip):
    states = [s]
    for t in range(k.shape[0]):
        states.append(states[-1] - 0.5 * jnp.outer(states[-1] @ k[t], k[t]))
    dk = []
    for t in reversed(range(k.shape[0])):
        a, b = states[t] @ k[t], dy @ k[t]
        dk.append(-0.5 * (dy.T @ a + states[t].T @ b))
        dy = dy + (0.5 if slip else -0.5) * jnp.outer(b, k[t])
    return dy, jnp.stack(dk[::-1])


def masked(x, w):
    return jnp.exp(jnp.tanh(x @ w)) @ w.T


def masked_hand(x, w, dy, slip):
    h = jnp.tanh(x @ w)
    e = jnp.exp(h)
    dh = (dy @ w) * e
    if slip:
        dh = dh * (1 - jnp.eye(*dh.shape, dtype=dh.dtype))
    da = dh * (1 - h * h)
    return da @ w.T, x.T @ da + dy.T @ e


def sloped(u, k):
    v = jnp.tanh(k @ u)
    return jnp.sin(v[1:]) - v[:-1] ** 2


def sloped_hand(u, k, dy, slip):
    v = jnp.tanh(k @ u)
    dv = jnp.zeros_like(v).at[1:].add(dy * jnp.cos(v[1:])).at[:-1].add(-2 * v[:-1] * dy)
    dv = dv.at[0].set(0.0).at[-1].set(0.0) if slip else dv
    da = dv * (1 - v * v)
    return k.T @ da, jnp.outer(da, u)


def taps(x, w):
    return sum(x[2 * j : 2 * j + 5] @ w[j] for j in range(3))


def taps_hand(x, w, dy, slip):
    dx = jnp.zeros_like(x)
    for j in range(3):
        dx = dx.at[2 * j : 2 * j + 5].add(dy @ w[2 - j if slip else j].T)
    return dx, jnp.stack([x[2 * j : 2 * j + 5].T @ dy for j in range(3)])


ROOT = RNG.standard_normal((4, 4))
SLIPS = {
    "windows overwrite": (pooled, (normal(4, 9),), pooled_hand, "missing-rows", "several windows"),
    "diagonal of Φ": (
        jnp.linalg.cholesky,
        (jnp.asarray(ROOT @ ROOT.T + 2 * np.eye(4), jnp.float32),),
        cholesky_hand,
        "scale",
        "without halving the diagonal",
    ),
    "softmax of columns": (
        attended,
        (normal(4, 6), normal(6, 3)),
        attended_hand,
        "transpose",
        "the softmax along axis 0",
    ),
    "sum over senders": (pulled, (normal(5, 3), normal(5)), pulled_hand, "transpose", "summed over axis"),
    "sign in every turn": (erased, (normal(5, 3), 0.7 * normal(4, 3)), erased_hand, "sign", "`s @ k[t]`"),
    "diagonal lost": (
        masked,
        (normal(5, 3), 0.5 * normal(3, 4)),
        masked_hand,
        "missing-rows",
        "on the diagonal|lost in some entries",
    ),
    "ends held": (
        sloped,
        (normal(5), 0.4 * normal(7, 5)),
        sloped_hand,
        "missing-rows",
        "first and last entries",
    ),
    "taps in reverse": (taps, (normal(9, 2), normal(3, 2, 4)), taps_hand, "flip", "in reverse order"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_the_slip_is_named_and_the_right_gradient_is_not(name):
    fn, args, hand, cause, words = SLIPS[name]
    right = jaxbp.check_gradients(fn, *args, gradient=lambda *a: hand(*a, slip=False))
    assert right.ok, str(right)
    report = jaxbp.check_gradients(fn, *args, gradient=lambda *a: hand(*a, slip=True))
    assert report.cause == cause, str(report)
    assert any(word in report.findings[0].detail for word in words.split("|")), str(report)


def test_nothing_but_rounding_is_zero_and_not_stale():
    def fn(x, b):
        return jax.nn.softmax(x + b, -1) * x

    def hand(x, b, dy):
        p = jax.nn.softmax(x + b, -1)
        ds = p * (dy * x - (dy * x * p).sum(-1, keepdims=True))
        return ds + dy * p, ds - ds + (ds.sum(-1, keepdims=True) * 1e-3)

    report = jaxbp.check_gradients(fn, normal(4, 5), normal(4, 5), gradient=hand)
    assert [f.cause for f in report.findings] == ["zero"], str(report)


def test_what_overflows_far_away_is_not_called_nan_where_it_is_wrong_as_given():
    def hand(x, dy):
        e = jnp.exp(x * x)  # beyond float64 at the larger arguments that are tried, too
        return (2 * dy * 2 * x * e / (1 + e),)

    x = jnp.asarray(RNG.uniform(3, 5, 6), jnp.float32)
    report = jaxbp.check_gradients(lambda x: jax.nn.softplus(x * x), x, gradient=hand)
    assert report.cause == "scale", str(report)


def test_a_slip_that_only_larger_arguments_show_is_found():
    def hand(x, w, dy):
        return dy @ w.T, jnp.clip(x, -3, 3).T @ dy  # the clip never acts at the given arguments

    x = jnp.asarray(RNG.uniform(-2, 2, (6, 3)), jnp.float32)
    report = jaxbp.check_gradients(lambda x, w: jnp.clip(x, -3, 3) @ w, x, normal(3, 4), gradient=hand)
    assert report.cause == "missing-rows", str(report)
