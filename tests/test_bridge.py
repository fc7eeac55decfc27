"""A hand-written block inside autodiff: plain `jax.grad`, twice over, Flax and Equinox; and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import GELU, Auto, Chain, Dense, Dropout, Eval, Tanh, Train, as_function
from tests.proof import like, normal

NET = Chain(Dense(5), GELU(), Dense(3))


def setup(dtype: str = "float64"):
    x = normal(1, (4, 6), dtype)
    params = like(2, NET.init(jax.random.key(0), x), 0.5)
    return params, x, normal(3, (4, 3), dtype)


def test_gradients_are_the_hand_written_ones_and_right() -> None:
    params, x, dy = setup()
    by_hand = as_function(NET)
    got = jax.jit(jax.grad(lambda p, x: jnp.vdot(by_hand(p, x), dy), (0, 1)))(params, x)
    expected = jax.grad(lambda p, x: jnp.vdot(NET(p, x), dy), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), got, expected)
    assert "custom_vjp" in str(jax.make_jaxpr(by_hand)(params, x))


def test_the_backward_pass_can_be_differentiated_again() -> None:
    params, x, dy = setup()

    def hessian_of(fn):
        return jax.hessian(lambda b: jnp.vdot(fn((params[0], (), {**params[2], "b": b}), x) ** 3, dy))

    b = params[2]["b"]
    by_hand = as_function(NET)

    def second(fn):
        first = jax.grad(lambda p: jnp.vdot(fn(p, x) ** 3, dy))
        return jax.grad(lambda p: sum(jnp.vdot(g, g) for g in jax.tree.leaves(first(p))))(params)

    got, expected = second(by_hand), second(NET)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, expected)
    assert np.all(np.isfinite(hessian_of(NET)(b)))


def test_hessian_vector_products_are_the_jvp_of_the_backward_pass() -> None:
    params, x, dy = setup()
    direction = like(4, params)

    def gradient(p):
        _, saved = NET.forward(p, x)
        return NET.backward(p, saved, dy)[0]

    got = jax.jvp(gradient, (params,), (direction,))[1]
    value = lambda p: jnp.vdot(NET(p, x), dy)  # noqa: E731
    expected = jax.jvp(jax.grad(value), (params,), (direction,))[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), got, expected)


def test_training_mode_goes_through() -> None:
    net = Chain(Dense(5), Dropout(0.5))
    x = normal(1, (4, 6), "float64")
    params = net.init(jax.random.key(0), x)
    by_hand, mode = as_function(net), Train(jax.random.key(7))
    got = jax.grad(lambda p: jnp.sum(by_hand(p, x, mode) ** 2))(params)
    expected = jax.grad(lambda p: jnp.sum(net.forward(p, x, mode)[0] ** 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), got, expected)
    assert np.any(np.asarray(by_hand(params, x, mode)) != np.asarray(by_hand(params, x, Eval())))


def double(params, x):
    ids, values = x
    return 2.0 * values + jnp.expand_dims(ids, -1).astype(values.dtype)


def test_auto_gives_none_for_integer_leaves() -> None:
    x = (jnp.arange(4), normal(1, (4, 3), "float64"))
    layer = Auto(double)
    _, saved = layer.forward((), x)
    (ids, values), _ = layer.pull((), saved, jnp.full((4, 3), 1.5))
    assert ids is None
    np.testing.assert_array_equal(values, 3.0)


def losses_of_training(loss_fn, params, steps: int = 60) -> list[float]:
    tx = optax.adam(0.02)
    state, losses = tx.init(params), []

    @jax.jit
    @jax.numpy_dtype_promotion("standard")  # Optax's Adam needs it
    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses


def task():
    x = normal(1, (32, 6), "float32")
    return x, jnp.sin(x[:, :2] * x[:, 2:4])


def test_inside_a_flax_model() -> None:
    linen = pytest.importorskip("flax.linen")
    block = Chain(Dense(8), Tanh())
    by_hand = as_function(block)

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(7)(x)
            params = self.param("block", lambda key: block.init(key, x))
            return linen.Dense(2)(by_hand(params, x))

    x, y = task()
    model = Model()
    params = model.init(jax.random.key(0), x)
    losses = losses_of_training(lambda p: jnp.mean((model.apply(p, x) - y) ** 2), params)
    assert losses[-1] < 0.5 * losses[0]


def test_inside_an_equinox_model() -> None:
    eqx = pytest.importorskip("equinox")
    block = Chain(Dense(8), Tanh())

    class Block(eqx.Module):
        params: tuple

        def __call__(self, x):
            return as_function(block)(self.params, x)

    x, y = task()
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(6, 7, key=keys[0], dtype="float32"),
            eqx.nn.Lambda(Block(block.init(keys[1], jax.ShapeDtypeStruct((7,), "float32")))),
            eqx.nn.Linear(8, 2, key=keys[2], dtype="float32"),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

    losses = losses_of_training(loss, params)
    assert losses[-1] < 0.5 * losses[0]
