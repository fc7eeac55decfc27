"""The oracle: custom rules are left out, values are float64, and finite differences agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from jaxbp.check.edits.edit import Edge, Edited
from jaxbp.check.edits.sites import Sites
from jaxbp.check.oracle import Oracle, directional, float64
from jaxbp.check.program import all_ops, read
from jaxbp.check.target import make_target

X = np.asarray([0.3, -0.7, 1.1], np.float32)


def oracle_of(fn, *args):
    return Oracle(make_target(fn, args))


@jax.custom_vjp
def wrong_sine(x):
    return jnp.sin(x)


wrong_sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (7 * g,))


def loop(x):
    def step(c, t):
        return jax.jit(wrong_sine)(c * t), jax.checkpoint(wrong_sine)(c)

    c, ys = jax.lax.scan(step, x, jnp.arange(1.0, 4.0, dtype=x.dtype))
    return jax.lax.cond(jnp.sum(x) > 0, wrong_sine, jnp.cos, c) + ys.sum(0)


def plain_loop(x):
    def step(c, t):
        return jnp.sin(c * t), jnp.sin(c)

    c, ys = jax.lax.scan(step, x, jnp.arange(1.0, 4.0, dtype=x.dtype))
    return jax.lax.cond(jnp.sum(x) > 0, jnp.sin, jnp.cos, c) + ys.sum(0)


def test_custom_rules_are_left_out_wherever_they_stand():
    oracle = oracle_of(loop, X)
    with float64():
        wide = [jnp.asarray(X, jnp.float64)]
        dy = [jnp.asarray([1.0, -2.0, 0.5])]
        got = oracle.gradient(wide, dy)[0]
        true = jax.vjp(plain_loop, wide[0])[1](dy[0])[0]
    np.testing.assert_allclose(got, true, rtol=1e-12)


def test_float64_also_where_the_code_asks_for_less():
    def fn(x):
        return jnp.sin(x.astype(jnp.bfloat16)).astype(jnp.float32) * jnp.float32(3)

    oracle = oracle_of(fn, X)
    with float64():
        got = oracle.gradient([jnp.asarray(X, jnp.float64)], [jnp.ones(3)])[0]
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, 3 * np.cos(X.astype(np.float64)), rtol=1e-12)


def test_while_loop_falls_back_on_forward_mode_and_callbacks_on_differences():
    def newton(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, x))[1]

    oracle = oracle_of(newton, X)
    with float64():
        got = oracle.settle([jnp.asarray(X, jnp.float64)], [jnp.ones(3)])[0]
    assert oracle.method == "forward"
    np.testing.assert_allclose(got, 4 * X.astype(np.float64) ** 3, rtol=1e-10)

    def host(x):
        return jax.pure_callback(
            np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims"
        )

    oracle = oracle_of(host, X)
    with float64():
        got = oracle.settle([jnp.asarray(X, jnp.float64)], [jnp.ones(3)])[0]
    assert oracle.method == "differences"
    np.testing.assert_allclose(got, np.cos(X.astype(np.float64)), rtol=1e-7)


def test_differences_are_exact_to_their_stated_uncertainty():
    with float64():
        x, v = jnp.asarray(X, jnp.float64), jnp.asarray([1.0, 0.5, -2.0])
        slope, doubt = directional(lambda a: [jnp.exp(a[0])], [x], [jnp.ones(3)], [v])
        true = jnp.vdot(jnp.exp(x), v)
    assert abs(slope - true) <= 1e-9 * abs(true)
    assert doubt < 1e-6


def test_a_derivative_rule_that_lies_is_found_by_differences():
    @jax.custom_jvp
    def lying(x):
        return jnp.sin(x)

    lying.defjvp(lambda p, t: (jnp.sin(p[0]), 2 * t[0]))
    report = jaxbp.check_gradients(lying, X)
    assert not report.ok  # the rule is a user's own: it is what is checked
    report = jaxbp.check_gradients(lambda x: jax.lax.stop_gradient(x) * x, X, gradient=lambda x, g: g * x)
    assert report.ok
    assert any("finite differences" in note for note in report.notes)


def test_cutting_every_edge_of_a_sum_takes_its_terms_away_one_by_one():
    def fn(a, b):
        return jnp.tanh(a) + a * b

    oracle = oracle_of(fn, X, X[::-1])
    sites = Sites(oracle.program)
    add = next(op for op in all_ops(oracle.program.scope) if op.name == "add")
    edited = Edited(oracle, [Edge(add, 0), Edge(add, 1)])
    with float64():
        a, b = jnp.asarray(X, jnp.float64), jnp.asarray(X[::-1], jnp.float64)
        da, db = edited.run(np.asarray([[1.0, 1], [0, 1], [1, 0], [2, -1]]), [a, b], [jnp.ones(3)])
    slope = 1 - np.tanh(np.float64(X)) ** 2
    other = np.float64(X[::-1])
    np.testing.assert_allclose(da, [slope + other, other, slope, 2 * slope - other], rtol=1e-12)
    np.testing.assert_allclose(db[:, 0], [X[0], X[0], 0, -X[0]], rtol=1e-12)
    assert sites.is_live(add, 0)


def test_places_are_lines_of_the_users_own_source():
    with float64():
        program = read(lambda x: jax.nn.softmax(x) * 2, [jnp.ones(3)])
    ops = all_ops(program.scope)
    assert {op.place.file for op in ops} == {__file__}
    assert "jax.nn.softmax(x) * 2" in ops[-1].place.text
    assert next(op for op in ops if op.name == "div").within == "softmax"


@pytest.mark.parametrize(
    "loss", [jaxbp.SquaredError(), jaxbp.SigmoidCrossEntropy(), jaxbp.SquaredError("sum")]
)
def test_losses_of_the_library(loss):
    p = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    assert jaxbp.check_gradients(loss, p, jax.nn.sigmoid(p[::-1])).ok
