"""What the harness does not see of the dense layers: starts, kinks, dtypes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    ELU,
    GELU,
    Chain,
    Dense,
    Dropout,
    Eval,
    Flatten,
    Identity,
    InputError,
    LeakyReLU,
    Precision,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    Train,
)
from tests.proof import like, normal


def test_initial_weights_have_the_spread_of_their_scheme() -> None:
    x = jax.ShapeDtypeStruct((1, 400), "float32")
    variance = {"he": 2 / 400, "glorot": 2 / (400 + 300), "lecun": 1 / 400, "normal": 1e-4, "zeros": 0.0}
    for name, expected in variance.items():
        params = Dense(300, initializer=name).init(jax.random.key(0), x)
        assert params["w"].shape == (400, 300)
        np.testing.assert_allclose(np.var(params["w"]), expected, rtol=0.02)
        np.testing.assert_array_equal(params["b"], np.zeros(300))


def test_an_initializer_of_ones_own() -> None:
    layer = Dense(3, initializer=jax.nn.initializers.constant(0.5))
    params = layer.init(jax.random.key(0), jnp.zeros((1, 2), "float32"))
    np.testing.assert_array_equal(params["w"], np.full((2, 3), 0.5))


def test_init_from_a_shape_is_init_from_an_array() -> None:
    net = Chain(Dense(4), Tanh(), Dense(2))
    x = normal(0, (5, 3), "float32")
    a = net.init(jax.random.key(3), x)
    b = net.init(jax.random.key(3), jax.ShapeDtypeStruct(x.shape, x.dtype))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_per_example_gradients_are_a_vmap_of_gradient() -> None:
    layer, x = Dense(4), normal(1, (5, 3), "float64")
    params = like(2, layer.init(jax.random.key(0), x))
    _, saved = layer.forward(params, x)
    _, delta = layer.pull(params, saved, normal(3, (5, 4), "float64"))
    each = jax.vmap(layer.gradient, (None, 0, 0))(params, saved, delta)
    assert each["w"].shape == (5, 3, 4)
    total = layer.gradient(params, saved, delta)
    jax.tree.map(lambda e, t: np.testing.assert_allclose(e.sum(0), t, rtol=1e-12), each, total)


def test_mixed_precision_keeps_float32_parameters_and_gradients() -> None:
    mixed = Dense(7, precision=Precision("float32", "bfloat16", "bfloat16"))
    x, dy = normal(1, (64, 33), "float32"), normal(2, (64, 7), "bfloat16")
    params = like(3, mixed.init(jax.random.key(0), x))
    y, saved = mixed.forward(params, x)
    dparams, dx = mixed.backward(params, saved, dy)
    assert (params["w"].dtype, y.dtype, saved[0].dtype) == ("float32", "bfloat16", "bfloat16")
    assert (dparams["w"].dtype, dparams["b"].dtype, dx.dtype) == ("float32",) * 3
    # summed in float32: products of bfloat16 values are exact in it
    kept, delta = (np.asarray(a, "float64") for a in (saved[0], dy))
    np.testing.assert_allclose(dparams["w"], kept.T @ delta, rtol=0, atol=2e-5)
    np.testing.assert_allclose(dparams["b"], delta.sum(0), rtol=0, atol=2e-6)


def slope_at(layer, a: float) -> float:
    x = jnp.asarray([a], "float64")
    _, saved = layer.forward((), x)
    return float(layer.pull((), saved, jnp.full(1, 1.5))[0][0] / 1.5)


@pytest.mark.parametrize(
    "layer", [ReLU(), LeakyReLU(0.3), ELU(0.7), Softplus(), SiLU(), GELU()], ids=repr
)
@pytest.mark.parametrize("a", [0.0, -0.0], ids=["0", "-0"])
def test_kinks_are_decided_as_jax_nn_decides_them(layer, a: float) -> None:
    fn = {
        ReLU(): jax.nn.relu,
        LeakyReLU(0.3): lambda a: jax.nn.leaky_relu(a, 0.3),
        ELU(0.7): lambda a: jax.nn.elu(a, 0.7),
        Softplus(): jax.nn.softplus,
        SiLU(): jax.nn.silu,
        GELU(): jax.nn.gelu,
    }[layer]
    np.testing.assert_allclose(slope_at(layer, a), jax.grad(fn)(a), rtol=1e-15)


def test_an_error_that_is_not_finite_stops_at_a_dead_relu() -> None:
    _, saved = ReLU().forward((), jnp.array([-1.0, 2.0]))
    dx, _ = ReLU().pull((), saved, jnp.array([jnp.inf, 3.0]))
    np.testing.assert_array_equal(dx, [0.0, 3.0])


@pytest.mark.parametrize("layer", [Sigmoid(), Tanh(), ReLU(), LeakyReLU(), ELU(), Softplus(), Softmax()])
def test_only_the_output_is_kept_where_the_derivative_can_be_written_in_it(layer) -> None:
    y, saved = layer.forward((), normal(1, (4, 3), "float64"))
    (kept,) = jax.tree.leaves(saved)
    assert kept is y


def test_saturated_units_have_no_error_but_rounding() -> None:
    for layer in (Sigmoid(), Tanh(), Softplus(), GELU(), SiLU()):
        for a in (-200.0, 200.0):
            assert np.isfinite(slope_at(layer, a))


FAR_AWAY = [-np.inf, -3e38, -1e20, -1e4, 1e4, 1e20, 3e38, np.inf]
LIMITS = {  # (slope at -inf, slope at inf)
    Identity(): (1, 1),
    Sigmoid(): (0, 0),
    Tanh(): (0, 0),
    ReLU(): (0, 1),
    LeakyReLU(0.3): (0.3, 1),
    ELU(0.7): (0, 1),
    Softplus(): (0, 1),
    SiLU(): (0, 1),
    GELU(): (0, 1),
    GELU(approximate=False): (0, 1),
}


@pytest.mark.parametrize("layer", LIMITS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_far_away_an_activation_and_its_slope_are_their_limits(layer, dtype) -> None:
    low, high = LIMITS[layer]
    x, dy = jnp.asarray(FAR_AWAY).astype(dtype), jnp.asarray([-1.5] * 8).astype(dtype)
    y, saved = layer.forward((), x)
    dx, _ = layer.pull((), saved, dy)
    bar = float(jnp.finfo(dtype).eps)
    slopes = [-1.5 * low] * 4 + [-1.5 * high] * 4  # ELU's is that of an h rounded to dtype
    np.testing.assert_allclose(dx.astype(float), slopes, rtol=bar, atol=bar)
    ends = {Sigmoid(): (0, 1), Tanh(): (-1, 1), ELU(0.7): (-0.7, None)}.get(layer, (None, None))
    for part, slope, end in ((slice(4), low, ends[0]), (slice(4, 8), high, ends[1])):
        expected = slope * x[part].astype(float) if slope else np.full(4, end or 0)
        np.testing.assert_allclose(y[part].astype(float), expected, rtol=bar)
    assert np.isnan(layer.forward((), jnp.asarray([np.nan], dtype))[0][0])


def test_dropout_keeps_the_expectation_and_the_share() -> None:
    layer, x = Dropout(0.25), jnp.ones((200, 300), "float64")
    y, mask = layer.forward((), x, Train(jax.random.key(0)))
    np.testing.assert_allclose(np.mean(np.asarray(mask)), 0.75, atol=0.01)
    np.testing.assert_allclose(np.unique(np.asarray(y)), [0, 1 / 0.75])
    np.testing.assert_array_equal(layer.forward((), x, Eval())[0], x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0), "Dense: features must be a positive integer, got 0"),
        (lambda: Dense(2.5), "features must be a positive integer, got 2.5"),
        (
            lambda: Dense(2, initializer="hee"),
            "expected one of he, glorot, lecun, normal, zeros, got 'hee'",
        ),
        (lambda: Dropout(1.0), r"rate must be in \[0, 1\), got 1.0"),
        (lambda: LeakyReLU(0.0), r"negative_slope must be positive, got 0.0 \(for 0 use ReLU\)"),
        (lambda: ELU(-1.0), "alpha must be positive, got -1.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_hyper_parameters(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "x", "message"),
    [
        (
            Dense(3),
            jnp.ones((4, 2), "int32"),
            r"Dense\(3\): x: expected an array of floating dtype, got int32",
        ),
        (Dense(3), jnp.asarray(1.0), "must have a feature axis, got a scalar"),
        (Dense(3), [1.0, 2.0], "expected an array of floating dtype, got list"),
        (ReLU(), jnp.ones(4, "int32"), r"expected an array of floating dtype, got int32\[4\]"),
        (Softmax(axis=2), jnp.ones((4, 2)), r"axis 2 does not exist in x of shape \[4, 2\]"),
        (Flatten(), jnp.ones(4), r"expected a batch axis and others, got shape \[4\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(layer, x, message: str) -> None:
    with pytest.raises(InputError, match=message):
        layer.forward(layer.init(jax.random.key(0), x), x)


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_feature_count_is_named_with_its_place() -> None:
    net = Chain(Dense(4), Chain(ReLU(), Dense(2)))
    params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(InputError) as error:
        net(params, jnp.ones((5, 7)))
    assert str(error.value) == (
        "Chain[0] > Dense(4): expected 3 features in the last axis of x, got 7 "
        "(x has shape [5, 7], w has shape [3, 4])"
    )
    with pytest.raises(InputError, match=r"^Chain\[1\] > Chain\[1\] > Dense\(2\): expected 9 features"):
        net((params[0], ((), {"w": jnp.ones((9, 2)), "b": jnp.ones(2)})), jnp.ones((5, 3)))
