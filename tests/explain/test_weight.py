"""Networks drawn at random: the sum over all paths against `jax.grad`, the counts against brute force."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    GELU,
    Branch,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    Identity,
    InputError,
    LogSoftmax,
    ReLU,
    Residual,
    Sigmoid,
    Softmax,
    SoftmaxCrossEntropy,
    SquaredError,
    Stack,
    Tanh,
    Train,
    explain_weight,
)
from jaxbp.explain import Explainer
from jaxbp.explain import names as naming
from jaxbp.oracle import reference_value_and_grad
from tests.explain.brute import products

NETS = {
    "mlp": Chain(Dense(4), ReLU(), Dense(3), Tanh(), Dense(2)),
    "softmax": Chain(Dense(3), GELU(), Dense(2), Softmax()),
    "residual": Chain(Dense(3), Residual(Chain(Dense(4), Sigmoid(), Dense(3))), Dense(2), LogSoftmax()),
    "nested": Chain(Residual(Residual(Dense(3))), Dense(2)),
    "branch-sum": Chain(Branch(Dense(3), Chain(Dense(2), Tanh(), Dense(3)), Identity()), Dense(2)),
    "branch-concat": Chain(Branch(Dense(1), Tanh(), merge="concat"), Dense(2)),
    "stack": Chain(Stack(Residual(Chain(Dense(2), Tanh(), Dense(3))), 2), Dense(2)),
    "flatten": Chain(Flatten(), Dropout(0.5), Dense(3), ReLU(), Dense(2)),
}


def make(net, seed=0, shape=(3,)):
    """Float64 parameters, every one of them random, and an example."""
    random = np.random.default_rng(seed)
    params = jax.eval_shape(net.init, jax.random.key(seed), jnp.zeros((1, *shape), jnp.float64))
    params = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape) * 0.7), params)
    return params, random.normal(size=shape), random.normal(size=2)


def test_every_weight_of_a_network_at_random():
    net, loss = NETS["mlp"], SquaredError()
    explainer = Explainer(net, *make(net), loss)
    _, grads = reference_value_and_grad(net, loss)(explainer.params, explainer.x, explainer.y)
    with jax.enable_x64(True):
        targets = list(naming.everything(explainer.graph))
    assert len(targets) == sum(a.size for a in jax.tree.leaves(explainer.params))
    for target in targets:
        e = explainer.weight(target.path, k=100, formulas=False)
        assert e.count == len(e.paths) == len(products(explainer, explainer.start(target)))
        expected = naming.entry(target, grads)
        assert sum(p.contribution for p in e.paths) == pytest.approx(expected, abs=1e-12)
        assert e.gradient == pytest.approx(expected, abs=1e-12)


def test_the_count_does_not_depend_on_the_values():
    """Units that are off and weights that are zero still are on paths, with a product of 0."""
    net = Chain(Dense(4), ReLU(), Dense(3), ReLU(), Dense(2))
    params = ({"w": np.zeros((3, 4)), "b": -np.ones(4)}, (), *make(net)[0][2:])
    e = explain_weight(net, params, np.zeros(3), np.ones(2), SquaredError(), "w123")
    assert e.count == 3 * 2
    assert [p.contribution for p in e.paths] == [0.0] * 6
    assert e.gradient == e.total == 0.0


def test_a_count_far_beyond_a_float_is_exact():
    """Ten layers of 100 neurons: a million million million paths and more."""
    width, depth = 100, 12
    net = Chain(Dense(width), Stack(Chain(Dense(width), Tanh()), depth), Dense(3))
    params, x, _ = make(net)
    e = explain_weight(net, params, x, np.zeros(3), SquaredError(), "w1_7_2", k=2)
    assert e.count == width**depth * 3
    assert e.savings.one_by_one == e.count * (1 + 2 * depth + 1)
    assert len(e.paths) == 2


def test_the_one_largest_path_of_many():
    net = NETS["mlp"]
    explainer = Explainer(net, *make(net, 3), SquaredError())
    with jax.enable_x64(True):
        every = products(explainer, explainer.start(naming.find(explainer.graph, "b13")))
    e = explainer.weight("b13", k=1)
    assert abs(e.paths[0].contribution) == pytest.approx(max(map(abs, every)), rel=1e-12)
    assert e.count == len(every) == 3 * 2


def test_classification_from_integer_labels():
    net = Chain(Dense(4), ReLU(), Dense(3))
    params, x, _ = make(net, 5)
    e = explain_weight(net, params, x, np.int32(2), SoftmaxCrossEntropy(), "w213")
    assert e.total == pytest.approx(e.gradient, abs=1e-15)
    assert [str(f) for f in e.paths[0].formulas] == ["h13", "softmax(a21) - y1"]


def test_dropout_in_training_closes_paths():
    net = Chain(Dense(6), Dropout(0.5), Dense(2))
    params, x, y = make(net, 2)
    mode = Train(jax.random.key(1))
    e = [explain_weight(net, params, x, y, SquaredError(), f"b1{i}", mode=mode) for i in range(1, 7)]
    dropped = [one.gradient == 0 for one in e]
    assert 0 < sum(dropped) < 6
    assert [one.count for one in e] == [0 if off else 2 for off in dropped]


def test_a_large_network_answers_in_seconds():
    net = Chain(Dense(512), ReLU(), Dense(512), ReLU(), Dense(10))
    random = np.random.default_rng(0)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 784), jnp.float32))
    params = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape) / 20, "float32"), params)
    start = time.perf_counter()
    x = random.normal(size=784).astype("float32")
    e = explain_weight(net, params, x, np.int32(3), SoftmaxCrossEntropy(), "w1_5_7", k=4)
    assert time.perf_counter() - start < 60
    assert e.count == 512 * 10
    grads = jax.grad(
        lambda p: SoftmaxCrossEntropy().forward(net(p, jnp.asarray(x)[None]), jnp.asarray([3]))[0]
    )(params)
    assert e.total == pytest.approx(float(grads[0]["w"][6, 4]), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(
    ("weight", "path"),
    [
        ("w2_13_4", "[2]['w'][3, 12]"),
        ("[2]['w'][3, 12]", "[2]['w'][3, 12]"),
        ("2.w[3,12]", "[2]['w'][3, 12]"),
        ("b2_13", "[2]['b'][12]"),
        ("w145", "[0]['w'][4, 3]"),
    ],
)
def test_names(weight, path):
    net = Chain(Dense(5), Tanh(), Dense(14))
    params, x, _ = make(net, shape=(5,))
    e = explain_weight(net, params, x, np.zeros(14), SquaredError(), weight, k=1)
    assert e.path == path
    assert e.weight in (weight, "w2_13_4")


KERNELS = [
    Conv(6, (2, 3), stride=(1, 2), padding="SAME"),
    Conv(6, (2, 3), groups=2, dilation=(2, 1)),
    Conv(8, (2, 3), groups=4),
    ConvTranspose(3, (2, 3), 2),
]


@pytest.mark.parametrize("layer", KERNELS, ids=str)
def test_the_entries_of_a_kernel_have_names_and_stand_on_the_edges(layer):
    """`w1_to_from_row_column`; from every pixel, what its edge is called has the edge's number."""
    net = Chain(layer, Flatten(), Tanh())
    params, x, _ = make(net, shape=(4, 5, 4))
    y = np.zeros(np.shape(net.forward(params, jnp.asarray(x)[None])[0])[1:])
    explainer = Explainer(net, params, x, y, SquaredError())
    kernel, seen = np.asarray(params[0]["w"]), set()
    (bundle,) = explainer.graph.leaving(explainer.graph.input)
    with jax.enable_x64(True):
        for j, i in zip(*(at.tolist() for at in bundle.jacobian.nonzero()), strict=True):
            name = str(explainer.formulas.edge(bundle, j, i))
            target = naming.find(explainer.graph, name)
            assert target.name == name
            assert target.value == pytest.approx(bundle.jacobian[j, i], rel=1e-12)
            seen.add(target.place)
    assert seen == set(np.ndindex(kernel.shape))
    to, come, row, column = 3, 2 if kernel.shape[2] > 1 else 1, 2, 3
    e = explainer.weight(f"w_1_{to}_{come}_{row}_{column}", 2)
    assert e.path == f"[0]['w'][{row - 1}, {column - 1}, {come - 1}, {to - 1}]"
    assert e.value == kernel[row - 1, column - 1, come - 1, to - 1]
    assert explainer.weight(e.path, 2).weight == e.weight


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("w231", "no 'w231'; in that layer w goes up to w224"),
        ("w411", "cannot read 'w411'"),
        ("v111", "no parameter called 'v'"),
        ("x9", "the input has no 'x9' (its last entry is x3)"),
        ("[0]['w'][9, 0]", "has shape [3, 4]"),
        ("nonsense", "there is no 'nonsense'"),
        ("", "there is no ''"),
        ("w2111", "cannot read 'w2111'"),
    ],
)
def test_a_weight_that_is_not_there(weight, message):
    net = Chain(Dense(4), Tanh(), Dense(2))
    params, x, y = make(net)
    with pytest.raises(InputError) as error:
        explain_weight(net, params, x, y, SquaredError(), weight)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": lambda p, x: x}, "net: expected a layer, got function"),
        ({"loss": "mse"}, "loss: expected a loss such as SquaredError(), got 'mse'"),
        ({"params": ({"w": np.ones((3, 4)), "b": np.ones(4)},)}, "expected params as a tuple of 5"),
        ({"x": np.ones(5)}, "expected 3 features in the last axis of x, got 5"),
        ({"y": np.ones(3)}, "expected a target of the prediction's shape [1, 2], got [1, 3]"),
        ({"k": 0}, "k: expected at least one path to show, got 0"),
    ],
)
def test_bad_input_is_named(change, message, unchecked):
    net = NETS["mlp"]
    given = dict(zip(("params", "x", "y"), make(net), strict=True))
    given = {"net": net, "loss": SquaredError(), "weight": "w111", **given, **change}
    with pytest.raises(InputError) as error:
        explain_weight(**given)
    assert message in str(error.value)


def test_formulas_are_never_shown_against_the_numbers():
    """Every formula that is shown is checked here by evaluating it at the numbers that it names."""
    net = Chain(Dense(3), Tanh(), Dense(3), Sigmoid(), Dense(2), Softmax())
    params, x, y = make(net, 8)
    explainer = Explainer(net, params, x, y, SquaredError())
    known = {f"y{i + 1}": float(v) for i, v in enumerate(y)}
    for block in explainer.graph.blocks:
        known |= {block.neuron(i): float(v) for i, v in enumerate(block.value)}
    with jax.enable_x64(True):
        known |= {t.name: t.value for t in naming.everything(explainer.graph)}
    checked = 0
    for name in ("w123", "w212", "b31"):
        for path in explainer.weight(name, k=50).paths:
            for formula, factor in zip(path.formulas, path.factors, strict=True):
                assert formula is not None
                assert evaluate(formula, known) == pytest.approx(factor, rel=1e-9, abs=1e-12)
                checked += 1
    assert checked > 50


def evaluate(e, known):
    parts = [evaluate(a, known) for a in e.args if hasattr(a, "op")]
    match e.op:
        case "num":
            return float(e.args[0])
        case "name":
            return known[e.args[0]]
        case "add":
            return sum(parts)
        case "mul":
            return float(np.prod(parts))
        case "neg":
            return -parts[0]
        case "pow":
            return parts[0] ** parts[1]
    raise AssertionError(e.op)


def test_the_names_of_all_weights_are_different():
    for net in NETS.values():
        params, x, y = make(net)
        names = Explainer(net, params, x, y, SquaredError()).names()
        assert len(set(names)) == len(names)
        assert not list(itertools.filterfalse(str.isidentifier, names))
