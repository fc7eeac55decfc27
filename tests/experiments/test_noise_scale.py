"""`experiments/noise_scale.py`: what it fits, measures and counts, where the answer is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import noise_scale
from jaxbp import Chain, Dense

NET = Chain(Dense(3))


@pytest.fixture(scope="module")
def data() -> tuple:
    y = jnp.arange(30, dtype=jnp.int32) % 3
    spread = jnp.asarray([[6.0, 1.0, 0.1, 1.0]])  # so that not all directions curve alike
    return (jax.random.normal(jax.random.key(0), (30, 4)) + jax.nn.one_hot(y, 4)) * spread, y


def test_the_fit_and_the_prediction_find_what_was_put_in() -> None:
    batches = 2.0 ** np.arange(8)
    np.testing.assert_allclose(noise_scale.fitted(batches, 30 * (1 + 12 / batches)), (30, 12), rtol=1e-6)
    assert noise_scale.predicted(np.full(9, 12.0), 64) == pytest.approx(12)
    # a step at 0 makes all of its progress, one at 64 half of it, which 32 examples would have made
    assert noise_scale.predicted(np.array([0.0, 64.0]), 64) == pytest.approx(32 / 1.5)


def test_the_noise_scales_are_those_of_the_dense_matrices(data) -> None:
    x, y = data
    params = NET.init(jax.random.key(1), x)

    def of(flat, x, y):
        return noise_scale.LOSS(NET(unravel(flat), x), y)

    flat, unravel = ravel_pytree(params)
    own = jax.jit(jax.vmap(lambda a, b: jax.grad(of)(flat, a[None], b[None])))
    each = np.asarray(own(x, y))
    # of predictions that are linear in the weights, the Gauss-Newton matrix is the Hessian
    curvature = np.asarray(jax.jit(jax.hessian(of))(flat, x, y))
    mean, covariance = each.mean(axis=0), np.cov(each.T, bias=True)
    expected = (
        np.trace(covariance) / (mean @ mean),
        np.trace(curvature @ covariance) / (mean @ curvature @ mean),
    )
    key = jax.random.key(2)
    got = jax.jit(partial(noise_scale.scales_of_all, NET, samples=2000))(params, x, y, key)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], rtol=0.1)  # 2,000 random signs
    assert abs(expected[0] - expected[1]) > 0.3 * expected[1], expected


def test_steps_are_counted_to_the_loss(data) -> None:
    x, y = data
    found = noise_scale.sweep(NET, x, y, (8,), (1.0, 0.8), 2)[8]
    assert 1 <= found[0][0] <= found[1][0] < 200
    losses, scales = noise_scale.measured(NET, x, y, found[1][1], 8, 0.8)
    assert losses[-1] <= 0.8 < min([9.0, *losses[:-1]])
    assert set(scales) == set(noise_scale.KINDS)
    assert all(len(s) == len(losses) and np.all(s > 0) for s in scales.values())
