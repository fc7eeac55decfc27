"""Slips that need a function of their own: each is planted here once, beside the right gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from tests.check.planted import must_be_named

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


def delayed(x, w):
    return sum(w[i] * jnp.concatenate([jnp.zeros_like(x[:i]), x[: len(x) - i]]) for i in (1, 2))


def delayed_hand(x, w, dy, slip):
    dx, dw = 0.0, [jnp.zeros_like(w[0])]
    for i in (1, 2):
        g = w[i] * dy
        back = jnp.concatenate([g[i:], jnp.zeros_like(g[:i])])
        again = jnp.concatenate([jnp.zeros_like(g[:i]), g[: len(g) - i]])
        dx = dx + (again if slip else back)
        dw.append((x[: len(x) - i] * dy[i:]).sum())
    return dx, jnp.stack(dw)


def dilated(x, w):
    return jax.lax.conv_general_dilated(x, w, (2,), "VALID", rhs_dilation=(2,))


def dilated_hand(x, w, dy, slip):
    count, dx, dw = dy.shape[2], jnp.zeros_like(x), []
    for j in range(w.shape[2]):
        at = slice(2 * j, 2 * j + 2 * count - 1, 2)
        to = slice(j, j + 2 * count - 1, 2) if slip else at
        dx = dx.at[:, :, to].add(jnp.einsum("bot,oc->bct", dy, w[:, :, j]))
        dw.append(jnp.einsum("bot,bct->oc", dy, x[:, :, at]))
    return dx, jnp.stack(dw, -1)


def ranked(s):
    return (jax.lax.cumlogsumexp(s, axis=1, reverse=True) - s).sum(-1)


def ranked_hand(s, dy, slip):
    tail = jnp.exp(-jax.lax.cumlogsumexp(s, axis=1, reverse=True))
    total = jnp.cumsum(tail[:, ::-1], 1)[:, ::-1] if slip else jnp.cumsum(tail, 1)
    return (dy[:, None] * (jnp.exp(s) * total - 1),)


def clipped_ratio(logp, gain):
    r = jnp.exp(logp)
    return jnp.minimum(r * gain, jnp.clip(r, 0.8, 1.2) * gain)


def clipped_ratio_hand(logp, gain, dy, slip):
    r = jnp.exp(logp)
    c = jnp.clip(r, 0.8, 1.2)
    live = (r > 0.8) & (r < 1.2) if slip else r * gain <= c * gain
    return jnp.where(live, r * gain, 0) * dy, jnp.where(r * gain < c * gain, r, c) * dy


def stepped(z, w):
    for _ in range(2):
        k1 = jnp.tanh(w @ z)
        k2 = jnp.tanh(w @ (z + 0.2 * k1))
        k3 = jnp.tanh(w @ (z + 0.3 * k2))
        z = z + 0.1 * (k1 + 2 * k2 + 3 * k3)
    return z


def stepped_hand(z, w, dy, slip):
    kept = []
    for _ in range(2):
        k1 = jnp.tanh(w @ z)
        k2 = jnp.tanh(w @ (z + 0.2 * k1))
        k3 = jnp.tanh(w @ (z + 0.3 * k2))
        kept.append((z, k1, k2, k3))
        z = z + 0.1 * (k1 + 2 * k2 + 3 * k3)
    dw, on = jnp.zeros_like(w), 0.0 if slip else 1.0
    for z, k1, k2, k3 in reversed(kept):
        a3 = 0.3 * dy * (1 - k3**2)
        a2 = (0.2 * dy + on * 0.3 * w.T @ a3) * (1 - k2**2)
        a1 = (0.1 * dy + on * 0.2 * w.T @ a2) * (1 - k1**2)
        dw = dw + jnp.outer(a1, z) + jnp.outer(a2, z + 0.2 * k1) + jnp.outer(a3, z + 0.3 * k2)
        dy = dy + w.T @ (a1 + a2 + a3)
    return dy, dw


def mixture(x, mu, prior):
    return jax.nn.logsumexp(prior[None] - 0.5 * (x[:, None] - mu[None]) ** 2, -1)


def mixture_hand(x, mu, prior, dy, slip):
    d = x[:, None] - mu[None]
    r = dy[:, None] * jax.nn.softmax((0 if slip else prior[None]) - 0.5 * d**2, -1)
    return -(r * d).sum(1), (r * d).sum(0), r.sum(0)


def kicked(x, v):
    for _ in range(3):
        x = x + 0.3 * v
        v = v - 0.3 * jnp.sin(x)
    return x + v


def kicked_hand(x, v, dy, slip):
    xs = [x]
    for _ in range(3):
        xs.append(xs[-1] + 0.3 * v)
        v = v - 0.3 * jnp.sin(xs[-1])
    dx = dv = dy
    for t in (2, 1, 0):
        dx = dx - 0.3 * dv * jnp.cos(xs[t] if slip else xs[t + 1])
        dv = dv + 0.3 * dx
    return dx, dv


def blocked(q, k, v):
    m, total = jnp.full(len(q), -jnp.inf, q.dtype), jnp.zeros(len(q), q.dtype)
    o = jnp.zeros((len(q), v.shape[1]), q.dtype)
    for j in range(0, len(k), 2):
        s = q @ k[j : j + 2].T
        new = jnp.maximum(m, s.max(1))
        p, kept = jnp.exp(s - new[:, None]), jnp.exp(m - new)
        total, o, m = total * kept + p.sum(1), o * kept[:, None] + p @ v[j : j + 2], new
    return o / total[:, None]


def blocked_hand(q, k, v, dy, slip):
    p = jax.nn.softmax(q @ k.T, -1)
    dp = dy @ v.T
    ds = p * (dp - (0 if slip else (dp * p).sum(-1, keepdims=True)))
    return ds @ k, ds.T @ q, p.T @ dy


def censored(eta, event):
    return event * (eta - jax.lax.cumlogsumexp(eta, reverse=True))


def censored_hand(eta, event, dy, slip):
    c = jax.lax.cumlogsumexp(eta, reverse=True)
    w = jnp.cumsum((dy if slip else event * dy) * jnp.exp(-c))
    return event * dy - jnp.exp(eta) * w, (eta - c) * dy


def gated(z, h, c):
    z = jax.nn.sigmoid(z)
    return z * jnp.tanh(c) + (1 - z) * jnp.sin(h)


def gated_hand(z, h, c, dy, slip):
    z = jax.nn.sigmoid(z)
    share = 1 - z if slip else z
    dz = dy * (jnp.tanh(c) - jnp.sin(h)) * z * (1 - z)
    return dz, (1 - share) * jnp.cos(h) * dy, share * (1 - jnp.tanh(c) ** 2) * dy


def scaled_groups(x, g):
    return jnp.tanh(x) * g[None]


def scaled_groups_hand(x, g, dy, slip):
    dg = (dy * jnp.tanh(x)).sum(0)
    return dy * g[None] * (1 - jnp.tanh(x) ** 2), jnp.repeat(dg.reshape(3, 2).sum(1), 2) if slip else dg


def margin(a, b):
    return jax.nn.relu(1 + a * a - b).mean()


def margin_hand(a, b, dy, slip):
    on = dy / a.size * jnp.where((1 + a * a - b > 0) | slip, 1.0, 0.0).astype(a.dtype)
    return 2 * a * on, -on * jnp.ones_like(b)


SPREAD = np.asarray([[0.3, 0.8, 0.5, 1.1], [0.9, 0.2, 0.7, 0.4]], np.float32)


def degrees(x, a):
    d = (a * a) @ SPREAD
    return x / jnp.sqrt(d[:, :3] * d[:, 1:])


def degrees_hand(x, a, dy, slip):
    d = (a * a) @ SPREAD
    y = x / jnp.sqrt(d[:, :3] * d[:, 1:])
    half = -0.5 * dy * y
    dd = jnp.zeros_like(d).at[:, :3].add(half).at[:, 1:].add(half)
    dd = dd if slip else dd / d
    return dy / jnp.sqrt(d[:, :3] * d[:, 1:]), 2 * a * (dd @ SPREAD.T)


def turning(w):
    return jnp.sin(jnp.arange(5, dtype=w.dtype)[:, None] * w[None])


def turning_hand(w, dy, slip):
    at = jnp.arange(5, dtype=w.dtype)[:, None]
    return (((at + 1 if slip else at) * dy * jnp.cos(at * w[None])).sum(0),)


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
    "delayed again": (delayed, (normal(7, 3), normal(3)), delayed_hand, "flip", "forward pass"),
    "dilation ignored": (
        dilated,
        (normal(2, 3, 11), normal(4, 3, 3)),
        dilated_hand,
        "missing-rows",
        "dilation of the kernel of 1",
    ),
    "ranks in the other direction": (ranked, (normal(4, 6),), ranked_hand, "flip", "`cumlogsumexp`"),
    "stopped at the clip": (
        clipped_ratio,
        (0.5 * normal(9), jnp.sign(normal(9)) * (0.5 + jnp.abs(normal(9)))),
        clipped_ratio_hand,
        "missing-rows",
        "at a bound",
    ),
    "stages apart": (stepped, (normal(4), normal(4, 4)), stepped_hand, "missing-path", "places"),
    "no prior": (
        mixture,
        (normal(7), normal(3), normal(3)),
        mixture_hand,
        "wrong-point",
        "without the term",
    ),
    "the turn before": (
        kicked,
        (normal(4), normal(4)),
        kicked_hand,
        "wrong-point",
        "that makes its input",
    ),
    "no row sums in a kernel": (
        blocked,
        (normal(3, 4), normal(5, 4), normal(5, 2)),
        blocked_hand,
        "missing-path",
        "denominator",
    ),
    "censored in one term alone": (
        censored,
        (normal(7), jnp.asarray([1, 0, 1, 1, 0, 1, 1], jnp.float32)),
        censored_hand,
        "missing-rows",
        "subtracted term",
    ),
    "the gate's other share": (
        gated,
        (normal(5, 4), normal(5, 4), normal(5, 4)),
        gated_hand,
        "wrong-point",
        "what is left of it to 1",
    ),
    "one gain a group": (
        scaled_groups,
        (normal(4, 6), normal(6)),
        scaled_groups_hand,
        "extra-path",
        "shared",
    ),
    "a hinge everywhere": (
        margin,
        (normal(5, 3), 2 * normal(5, 3)),
        margin_hand,
        "missing-rows",
        "`relu`",
    ),
    "not divided by itself": (
        degrees,
        (normal(4, 3), normal(4, 2)),
        degrees_hand,
        "scale",
        "not divided by it",
    ),
    "counted from 1": (turning, (normal(4),), turning_hand, "wrong-point", "counted from 1"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_the_slip_is_named_and_the_right_gradient_is_not(name):
    must_be_named(SLIPS[name])


def test_nothing_but_rounding_is_zero_and_not_stale():
    def fn(x, b):
        return jax.nn.softmax(x + b, -1) * x

    def hand(x, b, dy):
        p = jax.nn.softmax(x + b, -1)
        ds = p * (dy * x - (dy * x * p).sum(-1, keepdims=True))
        return ds + dy * p, ds - ds + (ds.sum(-1, keepdims=True) * 1e-3)

    report = jaxbp.check_gradients(fn, normal(4, 5), normal(4, 5), gradient=hand)
    assert [f.cause for f in report.findings] == ["zero"], str(report)


def divided(x, dy, guarded):
    whole = dy[:, None] * jnp.prod(x, 1, keepdims=True)
    return jnp.where(x == 0, 0, whole / jnp.where(x == 0, 1, x)) if guarded else whole / x


def multiplied(x, dy):
    others = [jnp.prod(jnp.delete(x, k, axis=1), 1) for k in range(x.shape[1])]
    return dy[:, None] * jnp.stack(others, 1)


@pytest.mark.parametrize(("guarded", "cause"), [(False, "nan"), (True, "missing-path")])
def test_a_product_whose_rule_divides_is_wrong_at_zeros(guarded, cause):
    def hand(x, dy):
        return (divided(x, dy, guarded),)

    report = jaxbp.check_gradients(lambda x: jnp.prod(x, 1), normal(3, 4), gradient=hand)
    assert report.cause == cause, str(report)
    assert report.findings[0].advice.startswith("Multiply the other factors"), str(report)


def test_a_product_of_what_is_left_of_one_is_wrong_at_one():
    alpha = jnp.asarray(RNG.uniform(0.1, 0.9, (3, 4)), jnp.float32)

    def hand(alpha, dy):
        return (-divided(1 - alpha, dy, True),)

    report = jaxbp.check_gradients(lambda a: jnp.prod(1 - a, 1), alpha, gradient=hand)
    assert "exactly 1" in report.findings[0].detail, str(report)


def test_a_product_whose_rule_multiplies_is_right_at_zeros_too():
    def hand(x, dy):
        return (multiplied(x, dy),)

    report = jaxbp.check_gradients(lambda x: jnp.prod(x, 1), normal(3, 4), gradient=hand)
    assert report.ok, str(report)
    assert "some entries of x exactly 0" in report.tried


def test_a_gradient_that_is_not_made_symmetric_is_named():
    root = normal(3, 3)

    def hand(s, dl):
        (g,) = cholesky_hand(s, dl, False)
        return (jnp.tril(2 * g) - jnp.diag(jnp.diag(g)),)

    s = root @ root.T + 3 * jnp.eye(3, dtype=jnp.float32)
    report = jaxbp.check_gradients(jnp.linalg.cholesky, s, gradient=hand)
    assert report.cause == "transpose", str(report)
    assert "the upper triangle is 0" in report.findings[0].detail


def test_the_slopes_of_another_function_are_not_called_stale():
    """Those of |x| in the place of the sign's are the same wherever no sign turns."""

    def fn(x, w):
        return jnp.sum(x * x, -1, keepdims=True) * jnp.sign(x) * w

    def hand(x, w, dy):
        signs, size = jnp.sign(x), jnp.sum(x * x, -1, keepdims=True)
        through_size = 2 * x * jnp.sum(dy * signs * w, -1, keepdims=True)
        return through_size + signs * size * w * dy, dy * size * signs

    report = jaxbp.check_gradients(fn, normal(3, 4), normal(3, 4), gradient=hand)
    assert report.cause != "stale", str(report)


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


def test_integers_of_numpy_go_through_a_mapped_rule():
    @jax.custom_vjp
    def picked(row, tag):
        return jnp.sin(row)[tag]

    def backward(saved, dy):
        row, tag = saved
        return jnp.zeros_like(row).at[tag].set(dy * jnp.cos(row)[tag]), None

    picked.defvjp(lambda row, tag: (picked(row, tag), (row, tag)), backward)
    tags = np.array([2, 0, 3], np.int32)
    report = jaxbp.check_gradients(lambda x, tags: jax.vmap(picked)(x, tags), normal(3, 4), tags)
    assert report.ok, str(report)


def test_a_rule_that_looks_at_its_integers_is_found_under_jit():
    def hand(x, labels, dy):
        keep = labels >= 0 if isinstance(labels, jax.core.Tracer) else np.asarray(labels) >= 0
        extra = 0.5 if isinstance(labels, jax.core.Tracer) else 1.0
        return jnp.where(jnp.asarray(keep)[:, None], extra * dy * jnp.cos(x), 0), None

    def fn(x, labels):
        return jnp.where((labels >= 0)[:, None], jnp.sin(x), 0)

    report = jaxbp.check_gradients(fn, normal(4, 3), jnp.asarray([1, -1, 0, 2]), gradient=hand)
    assert [finding.cause for finding in report.findings] == ["jit"], str(report)
    assert "integer arrays" in report.findings[0].detail
