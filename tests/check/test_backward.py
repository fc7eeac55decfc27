"""Slips that only a change of autodiff's backward pass names, and what is not linear in the cotangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import check_gradients
from jaxbp.check.backward.program import Backward
from jaxbp.check.oracle import Oracle
from jaxbp.check.target import make_target

RNG = np.random.default_rng(5)
X = jnp.asarray(RNG.normal(size=(6, 8)), jnp.float32)
W = jnp.asarray(RNG.uniform(0.5, 1.5, 8), jnp.float32)


@pytest.fixture(autouse=True)
def as_a_user():
    """Functions as people write them: a weight is broadcast over the rows."""
    with jax.numpy_rank_promotion("allow"):
        yield


def rms_norm(x, w):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * w


def test_a_weight_that_is_twice_in_one_term() -> None:
    def hand(x, w, dy):
        r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
        s = jnp.sum(dy * x * w, -1, keepdims=True)
        return dy * w * r - w * r**3 * x * s / x.shape[-1], jnp.sum(dy * x * r, 0)

    found = check_gradients(rms_norm, X, W, gradient=hand).findings
    assert [(f.cause, f.path, f.by) for f in found] == [("scale", "x", "backward")], found
    assert "multiplied by the argument w, once too often" in found[0].detail
    assert "mean(x * x" in found[0].evidence["source"] + found[0].detail


def test_the_function_itself_on_the_cotangent() -> None:
    report = check_gradients(lambda x: jnp.tanh(x) * x, X, gradient=lambda x, dy: jnp.tanh(dy) * dy)
    assert [(f.cause, f.by) for f in report.findings] == [("stale", "itself")], report


def test_a_term_without_the_cotangent_is_told_with_its_line() -> None:
    def fn(x):
        return jnp.sin(x) + jnp.exp(x)

    report = check_gradients(fn, X, gradient=lambda x, dy: dy * jnp.cos(x) + jnp.exp(x))
    assert [(f.cause, f.by) for f in report.findings] == [("stale", "bare")], report
    assert "`exp`" in report.findings[0].detail or "jnp.exp(x)" in report.findings[0].detail


def test_the_backward_pass_in_numpy_is_autodiffs() -> None:
    target = make_target(lambda x, w: jax.lax.scan(_turn, w, x)[1], (X, W), None, None, None)
    oracle = Oracle(target)
    dy = [RNG.normal(size=(6, 8))]
    leaves = [np.asarray(X, np.float64), np.asarray(W, np.float64)]
    backward = Backward(oracle, leaves, dy)
    env = backward.values(leaves, dy)
    with jax.enable_x64(True):
        true = oracle.gradient([jnp.asarray(v) for v in leaves], [jnp.asarray(d) for d in dy])
    for v, t in zip(backward.scope.outputs, true, strict=True):
        np.testing.assert_allclose(env[v], np.asarray(t), rtol=1e-11, atol=1e-12)


def _turn(h, x):
    h = jnp.tanh(0.5 * h + x) * jax.nn.sigmoid(x)
    return h, h - jnp.mean(h)
