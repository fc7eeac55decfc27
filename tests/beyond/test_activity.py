"""Numbers about every layer, against the same from each layer's own input and output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import Chain, Dense, InputError, ReLU, SquaredError, beyond, value_and_grad
from tests.beyond.test_book import close, problem
from tests.proof import normal


def test_numbers_are_those_of_activations_and_errors() -> None:
    net, loss = Chain(Dense(5), ReLU(), Dense(3)), SquaredError("sum")
    x, y = normal(1, (6, 4), "float64"), normal(2, (6, 3), "float64")
    params = jax.tree.map(lambda p: p.astype("float64"), net.init(jax.random.key(0), x))
    params[0]["b"] = params[0]["b"].at[2].set(-100.0)  # a unit that never fires
    _, _, found = jax.jit(beyond.layer_statistics(net, loss, bins=12))(params, x, y)
    a = np.asarray(x @ params[0]["w"]) + np.asarray(params[0]["b"])
    h = np.maximum(a, 0)
    f = h @ np.asarray(params[2]["w"]) + np.asarray(params[2]["b"])
    d = 2 * (f - np.asarray(y))
    back = d @ np.asarray(params[2]["w"]).T
    first, relu, last = (found[f"layers[{i}]"] for i in range(3))
    close(relu.activation, np.sqrt((h**2).mean()), 1e-6)
    close(relu.error, np.sqrt((back**2).mean()), 1e-6)
    close(first.error, np.sqrt(((back * (a > 0)) ** 2).mean()), 1e-6)
    close(first.largest, np.abs(a).max(), 1e-6)
    close(last.gradient, np.sqrt(((h.T @ d) ** 2).sum() + (d.sum(0) ** 2).sum()), 1e-6)
    close(relu.dead, (h == 0).all(0).mean(), 1e-6)
    close(first.silent, ((back * (a > 0)) == 0).all(0).mean(), 1e-6)
    assert relu.dead >= 0.2
    assert relu.gradient == 0
    counts, _ = np.histogram(np.log10(np.maximum(np.abs(h), 1e-8)), bins=12, range=(-8, 4))
    np.testing.assert_array_equal(relu.histogram[0], counts)
    assert int(last.histogram[1].sum()) == d.size


@pytest.mark.parametrize("name", ["stacks", "tied", "running"])
def test_value_and_gradient_are_those_of_a_step(name: str) -> None:
    net, loss, params, x, y = problem(name)
    value, grads, found = jax.jit(beyond.layer_statistics(net, loss))(params, x, y)
    expected = jax.jit(value_and_grad(net, loss))(params, x, y)
    jax.tree.map(close, (value, grads), expected)
    if name == "stacks":
        stacked = found["layers[1].body.body.body.layers[0]"]
        assert stacked.activation.shape == (3, 2)
        assert (stacked.error > 0).all()
    assert all(jnp.isfinite(s.activation).all() for s in found.values())


def test_bins_are_counted() -> None:
    with pytest.raises(InputError, match="bins"):
        beyond.layer_statistics(Dense(2), SquaredError(), -1)
