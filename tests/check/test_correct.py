"""Right gradients raise no alarm: in every dtype, and where the numbers are bad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from experiments.gallery import correct, exhibits
from jaxbp.check import noise, verify

CASES = correct.cases()
IN_THE_SUITE = (  # `experiments/checker_gallery.py` runs all of them
    "dense in bfloat16", "layer norm in float64", "softmax in bfloat16", "attention in float32",
    "recurrence in float32", "convolution in float32", "max pool in float32", "embedding in float32",
    "blocked sum kernel in float32", "two outputs in float32", "safe norm in float32",
    "messages in float32",
)  # fmt: skip
HARD = [name for name in CASES if " in " not in name]


def test_the_gallery_is_as_large_as_is_said():
    assert len(HARD) == 13
    assert len(CASES) >= 60
    assert len({exhibit.name for exhibit in exhibits()}) == len(exhibits())
    assert sum(len(exhibit.faults) for exhibit in exhibits()) >= 165


@pytest.mark.parametrize("name", [*IN_THE_SUITE, *HARD])
def test_no_alarm(name):
    fn, args, hand = CASES[name]
    report = jaxbp.check_gradients(fn, *args, gradient=hand)
    assert report.ok, str(report)


def test_rounding_is_measured_behind_an_infinite_value():
    """A running maximum begins at -inf: shaking that must not turn the measure into NaN."""

    def fn(leaves, dy):
        m = jnp.full(leaves[0].shape[1], -jnp.inf, leaves[0].dtype)
        for row in leaves[0]:
            m = jnp.maximum(m, row)
        return [jnp.exp(leaves[0] - m) * dy[0]]

    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        points = [
            ([jnp.asarray(rng.standard_normal((3, 4)))], [jnp.asarray(rng.standard_normal((3, 4)))])
        ]
        assert 0 < noise.spread(fn, points)[0][0] < 1e-12


def test_integer_leaves_have_no_gradient():
    def fn(batch, w):
        return w[batch["tokens"]]

    def hand(batch, w, g):
        return None, jnp.zeros_like(w).at[batch["tokens"]].add(g)

    tokens = jnp.asarray([0, 2, 2])
    w = jnp.asarray(np.arange(6.0).reshape(3, 2) - 2.2, jnp.float32)
    report = jaxbp.check_gradients(fn, {"tokens": tokens}, w, gradient=hand)
    assert report.ok, str(report)
    float0 = {"tokens": np.zeros(3, jax.dtypes.float0)}
    assert jaxbp.check_gradients(
        fn, {"tokens": tokens}, w, gradient=lambda b, w, g: (float0, hand(b, w, g)[1])
    ).ok


def test_index_arrays_of_numpy_stay_as_they_are():
    """JAX keeps what it made of a captured array; traced in float64, it would be int64 ever after."""
    ids = np.array([[1, 3, 1], [0, 3, 5]])

    def fn(w, p):
        return w[ids] * p[None]

    def hand(w, p, g):
        return jnp.zeros_like(w).at[ids].add(g * p[None]), (g * w[ids]).sum(0)

    rng = np.random.default_rng(4)
    with jax.enable_x64(False):  # as users have it
        w, p = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 4), (3, 4)))
        for _ in range(2):
            report = jaxbp.check_gradients(fn, w, p, gradient=hand)
            assert report.ok, str(report)
            assert fn(w, p).shape == (2, 3, 4)


def test_a_series_may_end_where_the_dtype_does():
    """Exact to rounding as given; 1e-6 off eight times further from 0, which float32 does not show."""

    def fn(x):
        return jnp.expm1(x) / x

    def hand(x, g, terms=6):
        series = (0.5, 1 / 3, 1 / 8, 1 / 30, 1 / 144, 1 / 840)
        return (g * sum(c * x**n for n, c in enumerate(series[:terms])),)

    x = jnp.asarray([1e-4, -2e-4, 3e-3, -5e-2], jnp.float32)
    assert jaxbp.check_gradients(fn, x, gradient=hand).ok
    assert not jaxbp.check_gradients(fn, x, gradient=lambda x, g: hand(x, g, terms=3)).ok


def test_tie_is_reported_and_not_held_against_the_rule():
    x = jnp.asarray([0.0, 1.0, -1.0, 2.0], jnp.float32)
    report = jaxbp.check_gradients(jax.nn.relu, x, gradient=lambda x, g: jnp.where(x >= 0, g, 0))
    assert report.ok, str(report)
    assert any("kink" in note for note in report.notes)


@pytest.mark.parametrize("fn", [jax.nn.relu, jax.nn.relu6])
def test_a_kink_inside_a_rule_of_jax_is_no_fault(fn):
    x = jnp.asarray([0.0, 1.0, -2.0], jnp.float32)
    report = jaxbp.check_gradients(fn, x, gradient=lambda x, g: jnp.where((x > 0) & (fn(x) == x), g, 0))
    assert report.ok, str(report)


def test_large_arguments_are_looked_at_once_and_compiled(monkeypatch):
    monkeypatch.setattr(verify, "LARGE", 10)
    net = jaxbp.Chain(jaxbp.Dense(4), jaxbp.Tanh())
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    report = jaxbp.check_gradients(net, net.init(jax.random.key(0), x), x)
    assert report.ok, str(report)
    assert report.evaluations == 2
    assert "one point, compiled" in report.notes[0]
    wrong = jaxbp.check_gradients(jnp.sin, jnp.ones(20), gradient=lambda x, g: 2 * jnp.cos(x) * g)
    assert wrong.cause == "scale"


def test_the_users_configuration_is_left_alone():
    names = ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
    with jax.enable_x64(False):
        before = [getattr(jax.config, name) for name in names]
        x = jnp.asarray([0.3, -0.7])
        assert jaxbp.check_gradients(jnp.sin, x, gradient=lambda x, g: jnp.cos(x) * g).ok
        assert [getattr(jax.config, name) for name in names] == before


def test_plain_function_is_said_to_have_no_rule():
    report = jaxbp.check_gradients(lambda x: jnp.sin(x), jnp.asarray([0.3, 0.4]))
    assert report.ok
    assert "no hand-written rule" in report.notes[0]
