"""What in an input speaks for a class: every rule by its formula, and what its parts add up to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    GELU,
    Auto,
    Chain,
    Conv,
    Dense,
    Flatten,
    InputError,
    MaxPool,
    ReLU,
    Residual,
    beyond,
)
from jaxbp.beyond import attribution
from tests.beyond.test_book import close
from tests.beyond.test_rules import drawn
from tests.proof import normal

CLASSES = jnp.asarray([2, 0, 2, 1, 1], jnp.int32)
IMAGES = normal(1, (5, 5, 4, 2), "float64")
NET = Chain(
    Conv(3, 3, bias=False),
    ReLU(),
    MaxPool(2),
    Flatten(),
    Dense(6, bias=False),
    ReLU(),
    Dense(3, bias=False),
)


def output(net, params, x):
    return net(params, x)[jnp.arange(5), CLASSES]


def derivative(net, params, x):
    return jax.grad(lambda x: output(net, params, x).sum())(x)


def squared(params, x):
    return x * x


def test_without_biases_the_parts_add_up_to_the_output(monkeypatch) -> None:
    """Of a network of ReLUs, by three rules; relevance for a small ε, which keeps a part else."""
    monkeypatch.setattr(attribution, "EPSILON", 1e-12)
    params = drawn(NET, IMAGES)

    @jax.jit
    def both(params, x):
        return (
            beyond.attributions(NET)(params, x, CLASSES),
            output(NET, params, x),
            derivative(NET, params, x),
        )

    maps, z, slope = both(params, IMAGES)
    assert maps.keys() == beyond.ATTRIBUTIONS.keys()
    for rule in ("gradient × input", "relevance"):
        close(maps[rule].sum((1, 2, 3)), z, 1e-7)
    # from nothing to x, the same ReLUs are on all the way
    close(maps["integrated"], maps["gradient × input"], 1e-9)
    close(maps["gradient × input"], IMAGES * slope)
    assert np.abs(np.asarray(maps["relevance"] - maps["integrated"])).max() > 0.01 * np.abs(z).max()


def test_integrated_is_the_mean_on_the_way_and_adds_up_to_the_difference() -> None:
    """A square between two matrices: its derivative is linear on the way, so the sum has no error."""
    net, x = Chain(Dense(6), Auto(squared), Dense(3)), normal(2, (5, 4), "float64")
    params, baseline = drawn(net, x), normal(3, (4,), "float64")
    found = jax.jit(beyond.attributions(net, ["integrated"]))(params, x, CLASSES, baseline)["integrated"]
    start = jnp.broadcast_to(baseline[None], x.shape)
    close(found.sum(1), output(net, params, x) - output(net, params, start))
    close(found, (x - start) * derivative(net, params, (x + start) / 2))


def test_guided_takes_paths_that_are_open_and_speak_for_the_output() -> None:
    net, x = Chain(Dense(6), ReLU(), Dense(5), ReLU(), Dense(3)), normal(2, (5, 4), "float64")
    params = drawn(net, x)
    (w1, b1), (w2, b2), (w3, _) = ((np.asarray(p["w"]), np.asarray(p["b"])) for p in params if p)
    h1 = np.maximum(np.asarray(x) @ w1 + b1, 0)
    h2 = np.maximum(h1 @ w2 + b2, 0)
    d2 = np.maximum(w3.T[np.asarray(CLASSES)], 0) * (h2 > 0)
    d1 = np.maximum(d2 @ w2.T, 0) * (h1 > 0)
    found = jax.jit(beyond.attributions(net, ["guided"]))(params, x, CLASSES)["guided"]
    close(found, d1 @ w1.T)


def test_rules_that_a_network_does_not_allow_are_left_out_or_named() -> None:
    smooth = Chain(Dense(3), GELU(), Dense(3))
    x = normal(2, (5, 4), "float64")
    around = Chain(Residual(Chain(Dense(4), ReLU())), Dense(3))
    for net, absent in ((smooth, {"guided"}), (around, {"relevance"})):
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        found = jax.eval_shape(beyond.attributions(net), params, x, CLASSES)
        assert found.keys() == beyond.ATTRIBUTIONS.keys() - absent
    made = jax.tree.map(lambda p: jnp.zeros(p.shape), jax.eval_shape(smooth.init, jax.random.key(0), x))
    for make, message in (
        (lambda: beyond.attributions(smooth, ["guided"]), "needs a ReLU"),
        (lambda: beyond.attributions(around, ["relevance"]), "written for a Chain, got Residual"),
        (lambda: beyond.attributions(smooth, ["saliency"]), "relevance, integrated, got 'saliency'"),
        (lambda: beyond.attributions(smooth)((), CLASSES[:, None], CLASSES), "x"),
        (lambda: beyond.attributions(smooth)(made, x, CLASSES, x), "baseline like one"),
        (lambda: beyond.attributions(Dense(3))(made[0], x[None], CLASSES), "examples, outputs"),
    ):
        with pytest.raises(InputError, match=message):
            make()
