"""Every layer and combinator: paths sum to what `jax.grad` says, and brute force counts as many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp as bp
from jaxbp import Chain, Dense, InputError, Layer, SquaredError, Train
from jaxbp.explain import Explainer
from jaxbp.explain import names as naming
from jaxbp.layer import children
from tests.explain.brute import products

MOST_COUNTED = 20_000


def wave(params, x):
    return jnp.sin(jnp.broadcast_to(params["rate"], x.shape) * x)


def make_wave(key, x):
    return {"rate": jnp.ones(x.shape[-1], x.dtype)}


U_NET = bp.Graph(
    down=(Chain(bp.Conv(2, (3,)), bp.ReLU()), "x"),
    deep=(Chain(bp.MaxPool((2,)), bp.Tanh(), bp.ConvTranspose(2, (2,), 2)), "down"),
    both=(bp.Concat(), ("down", "deep")),
    twice=(bp.Add(), ("both", "both")),
    y=(bp.Conv(1, (1,)), "twice"),
)
# One example each: a network, the shape of its input (or token ids), and the mode where it matters.
NETS = {
    "activations": (
        Chain(
            Dense(2),
            bp.Branch(bp.ReLU(), bp.LeakyReLU(), bp.ELU(), bp.SiLU(), bp.Softplus(), merge="concat"),
            Dense(2),
            bp.Branch(bp.GELU(), bp.Sigmoid(), bp.Identity()),
            bp.LogSoftmax(),
        ),
        (3,),
    ),
    "gates": (Chain(bp.Branch(Dense(3), Dense(3), bp.Tanh(), merge="product"), bp.Softmax()), (3,)),
    "image": (
        Chain(
            bp.Conv(2, 3, stride=2),
            bp.BatchNorm(),
            bp.ConvTranspose(2, 2, 2),
            bp.GroupNorm(1),
            bp.MaxPool(2),
            bp.AvgPool((2, 1)),
            bp.Flatten(),
            Dense(2),
        ),
        (4, 4, 2),
    ),
    "image in training": (
        Chain(bp.Conv(2, 3), bp.BatchNorm(), bp.Dropout(0.5), bp.GlobalAvgPool(), Dense(2)),
        (3, 3, 1),
        Train(jax.random.key(3)),
    ),
    "language": (
        bp.Tied(
            bp.Embedding(5, 4),
            bp.PositionEmbedding(length=4),
            bp.Stack(bp.Residual(Chain(bp.LayerNorm(), bp.Attention(2, causal=True))), 2),
            bp.RMSNorm(),
            bp.Head(5),
        ),
        np.array([1, 3, 0]),
    ),
    "recurrence": (Chain(bp.LSTM(2), bp.GRU(2, reverse=True), bp.Residual(bp.RNN(2)), Dense(1)), (3, 2)),
    "by autodiff": (
        Chain(bp.Branch(bp.RNN(2), bp.Auto(wave, make_wave)), bp.LastStep(), Dense(1)),
        (2, 2),
    ),
    "again": (
        Chain(
            bp.Recompute(Chain(Dense(3), bp.Tanh())),
            bp.Stack(bp.Residual(Dense(3)), 2, recompute=True),
            Dense(1),
        ),
        (2,),
    ),
    "graph": (U_NET, (4, 2)),
    "ladder": (
        bp.Graph(
            a=(Dense(2), "x"),
            b=(bp.Add(), ("a", "x")),
            c=(bp.Tanh(), "b"),
            d=(bp.Add(), ("c", "b", "a", "x")),
        ),
        (2,),
    ),
}


def kinds(layer):
    return {type(layer).__name__}.union(*(kinds(part) for _, part in children(layer)))


def test_no_public_layer_is_left_out():
    public = {
        name
        for name in bp.__all__
        if isinstance(made := getattr(bp, name), type) and issubclass(made, Layer) and made is not Layer
    }
    assert public == set().union(*(kinds(net) for net, *_ in NETS.values()))


def prepare(name):
    net, shape, *mode = NETS[name]
    random = np.random.default_rng(0)
    x = shape if isinstance(shape, np.ndarray) else random.normal(size=shape)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(x)[None])
    params = jax.tree.map(lambda a: jnp.asarray(np.abs(random.normal(size=a.shape)) * 0.5 + 0.1), params)
    y = random.normal(size=jax.eval_shape(net, params, jnp.asarray(x)[None]).shape[1:])
    return Explainer(net, params, x, y, SquaredError(), *mode)


def reference(explainer):
    """`∂L/∂params` and `∂L/∂x` by `jax.grad`."""

    def value(params, x):
        prediction = explainer.net.forward(params, x, explainer.mode)[0]
        return explainer.loss.forward(prediction, explainer.y)[0]

    return jax.jit(jax.grad(value, argnums=(0, 1), allow_int=True))(explainer.params, explainer.x)


@pytest.mark.parametrize("name", NETS)
def test_paths_sum_to_the_gradient_and_are_counted(name):
    """The last entry of every parameter array, and of the input."""
    explainer = prepare(name)
    grads, dx = reference(explainer)
    with jax.enable_x64(True):
        arrays = list(naming.arrays(explainer.graph))
        last = [naming.make(*found, tuple(n - 1 for n in np.shape(found[-1]))) for found in arrays]
    assert len(last) >= len(jax.tree.leaves(explainer.params))
    expected = {target.path: naming.entry(target, grads) for target in last}
    if explainer.graph.input.value.size:
        place = explainer.graph.input.neuron(explainer.graph.input.value.size - 1)
        expected[place] = float(np.asarray(dx).reshape(-1)[-1])
    counted = 0
    for path, right in expected.items():
        e = explainer.weight(path, k=3, formulas=False)
        shown = sum(p.contribution for p in e.paths)
        assert shown + e.remainder == pytest.approx(right, abs=1e-9)
        assert e.gradient == pytest.approx(right, abs=1e-9)
        if e.count <= MOST_COUNTED:
            with jax.enable_x64(True):
                every = products(explainer, explainer.start(naming.find(explainer.graph, path)))
            assert e.count == len(every)
            assert sum(every) == pytest.approx(right, abs=1e-9)
            largest = sorted(map(abs, every), reverse=True)[:3]
            assert [abs(p.contribution) for p in e.paths] == pytest.approx(largest, rel=1e-9, abs=1e-15)
            counted += 1
    assert counted


def test_a_recurrence_is_followed_through_time():
    """`h_t` and `h_{t+1}` are neurons of their own, so a weight has paths of every length."""
    net = Chain(bp.RNN(1), Dense(1, bias=False))
    params = (
        {"w_x": np.array([[0.5]]), "w_h": np.array([[0.9]]), "b": np.zeros(1)},
        {"w": np.ones((1, 1))},
    )
    x, y = np.array([[1.0], [0.5], [-0.7]]), np.zeros((3, 1))
    e = Explainer(net, params, x, y, SquaredError("sum")).weight("w_x_111", 10)
    ways = {p.nodes[: p.nodes.index(next(n for n in p.nodes if n[0] == "a"))] for p in e.paths}
    chain = ("h1_1_1", "h1_2_1", "h1_3_1")
    assert ways == {chain[i : j + 1] for i in range(3) for j in range(i, 3)}
    assert e.count == 6
    hidden = [0.0]
    for t in range(3):
        hidden.append(np.tanh(0.5 * x[t, 0] + 0.9 * hidden[-1]))
    slope = [1 - h * h for h in hidden[1:]]
    longest = next(p for p in e.paths if p.nodes[:3] == chain)
    by_hand = x[0, 0] * slope[0] * 0.9 * slope[1] * 0.9 * slope[2] * 2 * hidden[3]
    assert longest.contribution == pytest.approx(by_hand, rel=1e-12)


def test_a_masked_recurrence_stays_one_part():
    net, random = bp.RNN(2), np.random.default_rng(0)
    x = {"x": random.normal(size=(3, 2)), "mask": np.array([True, True, False])}
    params = {"w_x": random.normal(size=(2, 2)), "w_h": random.normal(size=(2, 2)), "b": np.ones(2)}
    e = Explainer(net, params, x, np.zeros((3, 2)), SquaredError())
    assert [block.name for block in e.graph.blocks] == ["x", "a1", "L"]
    found = e.weight("b12", 4)
    assert found.total == pytest.approx(found.gradient, abs=1e-12)


def test_a_network_that_only_moves_is_refused():
    with pytest.raises(InputError, match="one that only moves"):
        Explainer(bp.Flatten(), (), np.ones((2, 2)), np.ones(4), SquaredError())
