"""One program reads the same, whichever JAX wrote it down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp import check_gradients, explain_function, jaxprs
from tests.interpreter import interpret
from tests.proof import normal as drawn

B, H, T = 2, 3, 5


def normal(seed, shape):
    return drawn(seed, shape, "float64")


def cell(w, key, state, x):
    """Two carries of different ranks, a sequence of rows and one of numbers, two outputs."""
    h, n = state
    h = jnp.tanh(x[0] + h @ w) * x[1]
    return (h, n + 1), (h.sum(-1), (jax.random.key_data(key)[0] + n).astype("float64"))


def run(w, h, xs, reverse=False):
    key = jax.random.key(3)
    start = (h, jnp.asarray(0, "uint32"))
    return lax.scan(lambda state, x: cell(w, key, state, x), start, xs, reverse=reverse)


ARGS = normal(0, (H, H)), normal(1, (B, H)), (normal(2, (T, B, H)), normal(3, (T,)))


def loops(fn, *args):
    program, _ = jaxprs.opened(jax.make_jaxpr(fn)(*args))
    return [(e, jaxprs.loop_of(e)) for e in program.eqns if e.primitive.name == "scan"]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_operands_of_a_scan_divide_as_they_were_given(reverse) -> None:
    ((equation, loop),) = loops(lambda *args: run(*args, reverse=reverse), *ARGS)
    fixed, carry, sequences = loop.divide([v.aval for v in equation.invars])
    assert [a.shape for a in fixed] in ([(H, H), ()], [(), (H, H)])  # the weights and the key
    assert [a.shape for a in carry] == [(B, H), ()]
    assert [a.shape for a in sequences] == [(T, B, H), (T,)]
    assert [v.aval.shape for v in equation.outvars[loop.carry :]] == [(T, B), (T,)]
    assert (loop.consts, loop.carry, loop.length, loop.reverse) == (2, 2, T, reverse)
    assert list(loop.turns()) == (list(range(T))[::-1] if reverse else list(range(T)))


@pytest.mark.parametrize(
    ("fn", "counts"),
    [
        (lambda x: lax.map(jnp.sin, x), (0, 0, T)),
        (lambda x: lax.scan(lambda c, _: (c * x, None), x, None, length=4), (1, 1, 4)),
        (lambda x: lax.fori_loop(0, 3, lambda k, c: c * x[0, 0], x), (1, 2, 3)),
        (lambda x: lax.scan(lambda c, r: (c + r, c), x[0], x[:0]), (0, 1, 0)),
    ],
    ids=["no carry", "no sequence", "a number is carried", "no turn"],
)
def test_a_scan_without_one_of_its_parts(fn, counts) -> None:
    x = normal(4, (T, H))
    ((_, loop),) = loops(fn, x)
    assert (loop.consts, loop.carry, loop.length) == counts
    for got, expected in zip(jax.tree.leaves(interpret(fn, x)(x)), jax.tree.leaves(fn(x)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        assert got.dtype == expected.dtype


def test_a_scan_that_autodiff_wrote() -> None:
    def value(w, h, xs):
        (last, _), (sums, _) = run(w, h, xs, reverse=True)
        return (last**2).sum() + (sums * jnp.arange(1.0, T + 1)[:, None]).sum()

    grad = jax.grad(value, argnums=(0, 1, 2))
    for got, expected in zip(
        jax.tree.leaves(interpret(grad, *ARGS)(*ARGS)), jax.tree.leaves(grad(*ARGS)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_a_loop_is_explained() -> None:
    def f(w, x):
        last, turns = lax.scan(lambda h, v: (jnp.tanh(w * h + v), h * v), 0.5, x, reverse=True)
        return last + turns.sum()

    x = jnp.asarray([0.3, -1.2, 0.7])
    explanation = explain_function(f, 0.9, x)
    dw, dx = jax.grad(f, argnums=(0, 1))(0.9, x)
    totals = [d.total for d in explanation.derivatives]
    np.testing.assert_allclose(totals, [dw, *dx], rtol=1e-12)


def test_a_loop_without_a_turn_is_explained() -> None:
    def f(x):
        last, turns = lax.scan(lambda h, v: (h * v, h), x[0] ** 2, x[:0])
        return last + turns.sum()

    explanation = explain_function(f, jnp.asarray([1.5, 2.0]))
    np.testing.assert_allclose([d.total for d in explanation.derivatives], [3.0, 0.0])


# --- functions that some versions write out, and others don't ---------------------------------------

FUNCTIONS = {
    "log2": lambda x: jnp.log2(x).sum(),
    "polyval": lambda x: jnp.polyval(x, 1.3),
    "polyval_at": lambda x: jnp.polyval(jnp.asarray([0.5, -2.0, 1.5]), x).sum(),
    "tanh'": lambda x: jax.grad(lambda a: jnp.tanh(a).sum())(x) @ x,
    "asin'": lambda x: jax.grad(lambda a: jnp.arcsin(a / 4).sum())(x) @ x,
    "atanh'": lambda x: jax.grad(lambda a: jnp.arctanh(a / 4).sum())(x) @ x,
}  # fmt: skip
X = jnp.asarray([0.6, 1.7, 3.1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_explained_and_interpreted(name) -> None:
    f = FUNCTIONS[name]
    totals = [d.total for d in explain_function(f, X).derivatives]
    np.testing.assert_allclose(totals, jax.grad(f)(X), rtol=1e-12)
    np.testing.assert_allclose(interpret(f, X)(X), f(X), rtol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_rule_over_it_is_checked(name) -> None:
    @jax.custom_vjp
    def f(x):
        return FUNCTIONS[name](x)

    def backward(x, dy):
        return (dy * jax.grad(FUNCTIONS[name])(x) * f.factor,)

    f.defvjp(lambda x: (f(x), x), backward)
    f.factor = 1.0
    assert check_gradients(f, X).ok
    f.factor = 1.5
    report = check_gradients(f, X)
    assert not report.ok
    assert "1.5" in str(report)


def test_a_function_of_two_is_read_in_one_place_of_the_source() -> None:
    """What is written out here stands in the line that asked for it, and not in a file of ours."""

    @jax.custom_vjp
    def f(x):
        return jnp.sin(jnp.log2(x) * jnp.log2(x + 1)).sum()

    def backward(x, dy):  # the path through the second logarithm is left out
        first, second = jnp.log2(x), jnp.log2(x + 1)
        return (dy * jnp.cos(first * second) * second / x / jnp.log(2.0),)

    f.defvjp(lambda x: (f(x), x), backward)
    report = str(check_gradients(f, X))
    assert "test_jaxprs.py" in report
    assert "jaxprs.py:" not in report.replace("test_jaxprs.py:", "")
