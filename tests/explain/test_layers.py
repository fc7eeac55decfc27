"""Every kind of layer: the sum over all paths is what `jax.grad` says, whatever the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import SquaredError, compose, layers
from jaxbp.check.oracle import reference_value_and_grad
from jaxbp.explain import Explainer
from jaxbp.explain import names as naming

IMAGE, SEQUENCE, IDS = (6, 6, 2), (4, 6), 4


def cases():
    L, C = layers, compose
    return {
        "conv": (
            ("Conv",),
            lambda: C.Chain(L.Conv(3, 3, stride=2), L.ReLU(), L.Flatten(), L.Dense(2)),
            IMAGE,
        ),
        "transposed conv": (
            ("ConvTranspose", "GlobalAvgPool"),
            lambda: C.Chain(L.ConvTranspose(2, 2, 2), L.Tanh(), L.GlobalAvgPool(), L.Dense(2)),
            IMAGE,
        ),
        "pools": (
            ("Conv", "MaxPool", "AvgPool"),
            lambda: C.Chain(L.Conv(3, 3), L.MaxPool(2), L.AvgPool(3), L.Flatten(), L.Dense(2)),
            IMAGE,
        ),
        "batch norm": (
            ("Conv", "BatchNorm"),
            lambda: C.Chain(L.Conv(2, 3), L.BatchNorm(), L.ReLU(), L.Flatten(), L.Dense(2)),
            IMAGE,
        ),
        "group norm": (("GroupNorm",), lambda: C.Chain(L.GroupNorm(2), L.Flatten(), L.Dense(2)), IMAGE),
        "norms": (
            ("LayerNorm", "RMSNorm"),
            lambda: C.Chain(L.Dense(4), L.LayerNorm(), C.Residual(L.Dense(4)), L.RMSNorm(), L.Dense(2)),
            SEQUENCE[1:],
        ),
        "attention": (
            ("Attention", "LayerNorm"),
            lambda: C.Chain(C.Residual(C.Chain(L.LayerNorm(), L.Attention(2, causal=True))), L.Dense(2)),
            SEQUENCE,
        ),
        "lstm": (("LSTM",), lambda: C.Chain(L.LSTM(3), L.Dense(2)), SEQUENCE),
        "gru": (("GRU",), lambda: C.Chain(L.GRU(3), L.Dense(2)), SEQUENCE),
        "rnn": (("RNN",), lambda: C.Chain(L.RNN(3), L.Dense(2)), SEQUENCE),
        "embedding": (("Embedding",), lambda: C.Chain(L.Embedding(5, 4), L.Dense(2)), IDS),
        "tied": (
            ("Embedding", "Head"),
            lambda: C.Tied(L.Embedding(5, 4), C.Residual(L.Dense(4)), L.Head(5)),
            IDS,
        ),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_all_paths_of_some_weights_of_every_layer(name):
    needed, make, shape = cases()[name]
    if missing := [n for n in needed if not hasattr(layers, n)]:
        pytest.skip(f"not in this version: {', '.join(missing)}")
    net, loss, random = make(), SquaredError(), np.random.default_rng(0)
    ids = isinstance(shape, int)
    x = np.array([1, 3, 0, 2]) if ids else random.normal(size=shape)
    params = net.init(jax.random.key(0), jnp.asarray(x)[None])
    params = jax.tree.map(lambda a: jnp.asarray(np.abs(random.normal(size=a.shape)) * 0.5 + 0.1), params)
    like = jax.eval_shape(net, params, jnp.asarray(x)[None])
    y = random.normal(size=like.shape[1:])
    explainer = Explainer(net, params, x, y, loss)
    _, grads = reference_value_and_grad(net, loss)(explainer.params, explainer.x, explainer.y)
    with jax.enable_x64(True):
        targets = list(naming.everything(explainer.graph))
    for target in targets[:: max(1, len(targets) // 6)]:
        expected = naming.entry(target, grads)
        e = explainer.weight(target.path, k=4, formulas=False)
        shown = sum(p.contribution for p in e.paths)
        assert shown + e.remainder == pytest.approx(expected, abs=1e-9)
        assert e.gradient == pytest.approx(expected, abs=1e-9)
