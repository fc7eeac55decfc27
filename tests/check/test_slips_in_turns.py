"""Slips in what is done again and again: the turns of a loop, the calls of a helper, look-ups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxbp
from tests.check.planted import must_be_named

RNG = np.random.default_rng(20261126)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def strided(x, w):
    return lax.conv_general_dilated(x, w, (1,), "VALID", rhs_dilation=(2,))


def strided_hand(x, w, dy, slip):
    count, dx, dw = dy.shape[2], jnp.zeros_like(x), []
    for j in range(w.shape[2]):
        dx = dx.at[:, :, 2 * j : 2 * j + count].add(jnp.einsum("bot,oc->bct", dy, w[:, :, j]))
        at = j if slip else 2 * j
        dw.append(jnp.einsum("bot,bct->oc", dy, x[:, :, at : at + count]))
    return dx, jnp.stack(dw, -1)


LENGTHS = jnp.asarray([5, 2, 3])


def held(h, xs, w):
    for t in range(len(xs)):
        h = jnp.where((t < LENGTHS)[:, None], jnp.tanh(xs[t] + h @ w), h)
    return h


def held_hand(h, xs, w, dh, slip):
    hs = [h]
    for t in range(len(xs)):
        hs.append(jnp.where((t < LENGTHS)[:, None], jnp.tanh(xs[t] + hs[-1] @ w), hs[-1]))
    dw, dxs = jnp.zeros_like(w), []
    for t in reversed(range(len(xs))):
        m = (t < LENGTHS - int(slip))[:, None]
        da = jnp.where(m, dh * (1 - hs[t + 1] ** 2), 0)
        dw, dxs = dw + hs[t].T @ da, [da, *dxs]
        dh = da @ w.T + jnp.where(m, 0, dh)
    return dh, jnp.stack(dxs), dw


def remembered(c, x):
    def step(c, x):
        c = jnp.sin(c) + x
        return c, jnp.tanh(c) * x

    return lax.scan(step, c, x)[1]


def remembered_hand(c, x, dy, slip):
    def step(c, x):
        new = jnp.sin(c) + x
        return new, (c, new)

    def back(dc, now):
        x, dy, old, new = now
        d = (0 * dc if slip else dc) + dy * x * (1 - jnp.tanh(new) ** 2)
        return d * jnp.cos(old), d + dy * jnp.tanh(new)

    _, (old, new) = lax.scan(step, c, x)
    return lax.scan(back, jnp.zeros_like(c), (x, dy, old, new), reverse=True)


def decayed(h, a, x):
    return lax.scan(lambda h, now: (now[0] * h + now[1],) * 2, h, (a, x))[1]


def decayed_hand(h, a, x, dy, slip):
    hs = jnp.concatenate([h[None], decayed(h, a, x)[:-1]])
    use = jnp.concatenate([a[:1], a[:-1]]) if slip else a

    def back(e, now):
        dy, a, old = now
        e = e + dy
        return a * e, (e, e * old)

    dh, (dx, da) = lax.scan(back, jnp.zeros_like(h), (dy, use, hs), reverse=True)
    return dh, da, dx


def drift(z, w):
    return jnp.tanh(w @ z)


def midpoints(z, w):
    for _ in range(2):
        k = drift(z, w)
        z = z + 0.4 * drift(z + 0.2 * k, w)
    return z


def midpoints_hand(z, w, dy, slip):
    kept = []
    for _ in range(2):
        kept.append((z, jnp.tanh(w @ z)))
        z = z + 0.4 * jnp.tanh(w @ (z + 0.2 * kept[-1][1]))
    dw = jnp.zeros_like(w)
    for z, k in reversed(kept):
        at = z if slip else z + 0.2 * k
        d = 0.4 * dy * (1 - jnp.tanh(w @ at) ** 2)
        dz = w.T @ d
        e = 0.2 * dz * (1 - k**2)
        dw = dw + jnp.outer(d, at) + jnp.outer(e, z)
        dy = dy + dz + w.T @ e
    return dy, dw


def turned(x, angle):
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * x[0] - s * x[1], s * x[0] + c * x[1]])


def turned_hand(x, angle, dy, slip):
    y = x if slip else turned(x, angle)
    return turned(dy, -angle), dy[1] * y[0] - dy[0] * y[1]


def between(x, at):
    i = jnp.floor(at).astype(int)
    f = (at - i.astype(at.dtype))[:, None]
    return (1 - f) * x[i] + f * x[i + 1]


def between_hand(x, at, dy, slip):
    i = jnp.floor(at).astype(int)
    f = (at - i.astype(at.dtype))[:, None]
    if slip:
        dx = jnp.zeros_like(x).at[i].set((1 - f) * dy).at[i + 1].set(f * dy)
    else:
        dx = jnp.zeros_like(x).at[i].add((1 - f) * dy).at[i + 1].add(f * dy)
    return dx, (dy * (x[i + 1] - x[i])).sum(-1)


def smoothed(x, v):
    k = jnp.exp(-x * x)
    return k @ v / k.sum(1, keepdims=True)


def smoothed_hand(x, v, dy, slip):
    k = jnp.exp(-x * x)
    total = k.sum(1, keepdims=True)
    y = k @ v / total
    g = (dy @ v.T - (dy * y).sum(1, keepdims=True)) * k
    return -2 * x * (g if slip else g / total), (k / total).T @ dy


PLACES = jnp.asarray([0.3, 2.6, 1.2, 0.7, 2.1], jnp.float32)
SLIPS = {
    "the kernel's dilation": (
        strided,
        (normal(2, 3, 9), normal(4, 3, 3)),
        strided_hand,
        "wrong-point",
        "dilation of the kernel of 1",
    ),
    "lengths off by one": (
        held,
        (0.5 * normal(3, 4), normal(6, 3, 4), 0.4 * normal(4, 4)),
        held_hand,
        "missing-rows",
        "the mask of the turn after",
    ),
    "the next turn dropped": (
        remembered,
        (normal(3), normal(5, 3)),
        remembered_hand,
        "missing-path",
        "from the next turn",
    ),
    "the decay of the turn before": (
        decayed,
        (normal(3), 0.7 * normal(5, 3), normal(5, 3)),
        decayed_hand,
        "wrong-point",
        "of the turn before",
    ),
    "both stages at the start": (
        midpoints,
        (normal(4), normal(4, 4)),
        midpoints_hand,
        "wrong-point",
        "first call",
    ),
    "what is not turned yet": (
        turned,
        (normal(2, 5), normal(5)),
        turned_hand,
        "wrong-point",
        "angle 0",
    ),
    "neighbours overwritten": (
        between,
        (normal(4, 3), PLACES),
        between_hand,
        "missing-rows",
        "overwritten",
    ),
    "weights not normalised": (
        smoothed,
        (normal(4, 6), normal(6, 3)),
        smoothed_hand,
        "wrong-point",
        "not normalised",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_the_slip_is_named_and_the_right_gradient_is_not(name):
    must_be_named(SLIPS[name])


def test_a_wrong_forward_pass_explains_what_follows_from_it():
    @jax.custom_vjp
    def norm(x):
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True))

    def backward(x, dy):
        r = jnp.sqrt((x * x).mean(-1, keepdims=True))
        h = x / r
        return ((dy - h * (dy * h).mean(-1, keepdims=True)) / r,)

    norm.defvjp(lambda x: (1.5 * norm(x), x), backward)
    report = jaxbp.check_gradients(lambda x, w: jnp.tanh(norm(x) @ w), normal(4, 3), normal(3, 5))
    assert [finding.cause for finding in report.findings] == ["forward"], str(report)


def test_a_point_at_which_the_gradient_explodes_does_not_decide():
    """At larger arguments this map grows beyond all measure: nothing is 0 beside that."""

    def grown(x, w):
        for _ in range(12):
            x = x + 0.1 * x * x * w
        return x

    def hand(x, w, dy):
        xs = [x]
        for _ in range(12):
            xs.append(xs[-1] + 0.1 * xs[-1] * xs[-1] * w)
        dw = jnp.zeros_like(w)
        for x in reversed(xs[:-1]):
            dw = dw + 0.1 * x * x * dy
            dy = dy * (1 + 0.1 * x * w)  # a 2 is missing
        return dy, dw

    x = jnp.asarray(RNG.uniform(0.5, 1.5, 5), jnp.float32)
    report = jaxbp.check_gradients(
        grown, x, jnp.asarray(RNG.uniform(0.5, 1, 5), jnp.float32), gradient=hand
    )
    assert {finding.cause for finding in report.findings} == {"scale"}, str(report)
