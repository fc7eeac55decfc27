"""What the harness does not see of the combinators: keys, gather, compile size, addresses, bad input."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    Branch,
    Chain,
    Dense,
    Dropout,
    Embedding,
    Eval,
    Head,
    InputError,
    ReLU,
    Residual,
    Softmax,
    SquaredError,
    Stack,
    Tanh,
    Train,
    check_gradients,
    value_and_grad,
)
from jaxbp.compose import Tied, add_errors
from jaxbp.graph import Add, Graph
from jaxbp.layer import Layer, adds, children, is_leaf, leaves, map_leaves, rebuild, walk
from jaxbp.models import gpt
from jaxbp.record import passed, record, recorded
from jaxbp.summary import summary
from tests.proof import normal

NET = Chain(
    Dense(4), Stack(Residual(Chain(Dense(4), Tanh())), 3), Branch(Dense(2), Chain(ReLU(), Dense(2)))
)


def start(net, shape=(5, 6)):
    x = normal(1, shape, "float64")
    return net.init(jax.random.key(0), x), x


def test_a_stack_is_a_chain_of_its_slices() -> None:
    body = Residual(Chain(Dense(4), Tanh()))
    stack, chain = Stack(body, 3), Chain(body, body, body)
    params, x = start(stack, (5, 4))
    slices = tuple(jax.tree.map(lambda p, i=i: p[i], params) for i in range(3))
    target = normal(2, (5, 4), "float64")
    value, grads = value_and_grad(stack, SquaredError())(params, x, target)
    expected, expected_grads = value_and_grad(chain, SquaredError())(slices, x, target)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    for i in range(3):
        part = jax.tree.map(lambda g, i=i: g[i], grads)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), part, expected_grads[i]
        )


def test_what_is_compiled_does_not_grow_with_depth() -> None:
    def size(depth: int) -> int:
        net = Stack(Residual(Chain(Dense(4), Tanh())), depth)
        params, x = start(net, (5, 4))
        return len(
            jax.jit(value_and_grad(net, SquaredError())).lower(params, x, x).as_text().splitlines()
        )

    assert size(24) == size(6)


def test_gather_is_called_once_a_leaf_and_mirrors_the_tree() -> None:
    params, x = start(NET)
    target = normal(2, (5, 2), "float64")

    def norms(layer, params, saved, delta):
        return sum(jnp.sum(g * g) for g in jax.tree.leaves(layer.gradient(params, saved, delta)))

    _, gathered = value_and_grad(NET, SquaredError(), norms)(params, x, target)
    _, grads = value_and_grad(NET, SquaredError())(params, x, target)
    assert jnp.shape(gathered[1][0]) == (3,)  # the stack's three slices
    total = sum(float(jnp.sum(jnp.asarray(n))) for n in jax.tree.leaves(gathered))
    np.testing.assert_allclose(
        total, sum(float(jnp.vdot(g, g)) for g in jax.tree.leaves(grads)), rtol=1e-12
    )


def test_record_shows_what_passes_every_leaf() -> None:
    params, x = start(NET)
    target = normal(2, (5, 2), "float64")
    _, grads = value_and_grad(NET, SquaredError())(params, x, target)
    _, seen = jax.jit(value_and_grad(recorded(NET), SquaredError(), passed))(params, x, target)
    first = seen[0]
    np.testing.assert_array_equal(first.x, x)
    np.testing.assert_allclose(first.gradient["w"], grads[0]["w"], rtol=1e-13)
    np.testing.assert_allclose(first.dx, first.dy @ params[0]["w"].T, rtol=1e-12)
    assert seen[1][0].x.shape == (3, 5, 4)
    _, same = jax.jit(value_and_grad(recorded(NET), SquaredError()))(params, x, target)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), same, grads)


def test_every_leaf_has_an_address_and_can_be_replaced() -> None:
    assert [path for path, _ in leaves(NET)] == [
        "layers[0]",
        "layers[1].body.body.layers[0]",
        "layers[1].body.body.layers[1]",
        "layers[2].bodies[0]",
        "layers[2].bodies[1].layers[0]",
        "layers[2].bodies[1].layers[1]",
    ]
    assert [name for name, _ in children(NET)] == ["layers[0]", "layers[1]", "layers[2]"]
    assert is_leaf(Dense(3))
    assert not is_leaf(NET)
    swapped = map_leaves(lambda leaf: ReLU() if leaf == Tanh() else leaf, NET)
    assert [type(leaf).__name__ for _, leaf in leaves(swapped)].count("ReLU") == 2
    assert swapped.layers[1].depth == 3


def test_layers_are_hashable_equal_by_value_and_print_as_their_constructor() -> None:
    again = Chain(
        Dense(4), Stack(Residual(Chain(Dense(4), Tanh())), 3), Branch(Dense(2), Chain(ReLU(), Dense(2)))
    )
    assert again == NET
    assert hash(again) == hash(NET)
    assert eval(repr(NET)) == NET
    assert repr(Branch(Dense(2), ReLU(), merge="concat")) == "Branch(Dense(2), ReLU(), merge='concat')"
    assert repr(Stack(Dense(2, bias=False), 3, unroll=2)) == "Stack(Dense(2, bias=False), 3, unroll=2)"


def deep(around: str = "chain") -> Layer:
    """Chains in chains, 300 deep, or residuals in residuals, 100 deep; a layer beside some of them."""
    net: Layer = Dense(3)
    if around == "residual":
        for i in range(100):
            net = Residual(net if i % 25 else Chain(Tanh(), net))
        return net
    for i in range(300):
        net = Chain(net) if i % 50 else Chain(net, Tanh()) if i % 100 else Chain(Tanh(), net)
    return net


@pytest.mark.parametrize("around", ["chain", "residual"])
def test_deep_nesting_does_not_end_at_pythons_limit(around: str) -> None:
    net, x, target = deep(around), normal(1, (2, 3), "float32"), normal(2, (2, 3), "float32")
    params = net.init(jax.random.key(0), x)
    assert repr(net).count("Dense(3)") == 1
    assert sum(1 for _ in leaves(net)) == len(summary(net, x).rows) == len(list(walk(net, params)))
    assert map_leaves(lambda leaf: leaf, net).init(jax.random.key(0), x)
    assert all(jax.tree.leaves(net.trainable(params)))
    value, grads = jax.jit(value_and_grad(net, SquaredError()))(params, x, target)
    y, saved = net.forward(params, x)
    assert jax.tree.structure(net.update_statistics(params, saved)) == jax.tree.structure(params)
    np.testing.assert_allclose(value, jnp.mean(jnp.sum((y - target) ** 2, axis=1)), rtol=1e-5)
    if around == "chain":  # the same layers in one row
        flat = Chain(*(leaf for _, leaf in leaves(net)))
        own = tuple(part.params for part in walk(net, params))
        same = value_and_grad(flat, SquaredError())(own, x, target)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            jax.tree.leaves((value, grads)),
            jax.tree.leaves(same),
        )


def test_an_address_in_nested_chains_is_that_of_every_level() -> None:
    net = Chain(Tanh(), Chain(Chain(Dense(3), Residual(Dense(4)))))
    with pytest.raises(
        InputError, match=r"^Chain\[1\] > Chain\[0\] > Chain\[1\] > Residual > the body must"
    ):
        start(net)


EVERY = {
    "chain": NET,
    "tied": Chain(Tied(Embedding(7, 5), Dense(5), Head(7)), Softmax()),
    "graph": Graph(a=(Dense(4), "x"), b=(Chain(Tanh(), Dense(4)), "a"), y=(Add(), ("a", "b"))),
    "record": recorded(Stack(Chain(Stack(Dense(6), 2), Tanh()), 3)),
}
OF_EVERY = {
    "chain": [
        "layers[0]",
        "layers[1].body.body.layers[0]",
        "layers[1].body.body.layers[1]",
        "layers[2].bodies[0]",
        "layers[2].bodies[1].layers[0]",
        "layers[2].bodies[1].layers[1]",
    ],
    "tied": [f"layers[0].layers[{i}]" for i in range(3)] + ["layers[1]"],
    "graph": ["layers[0]", "layers[1].layers[0]", "layers[1].layers[1]", "layers[2]"],
    "record": ["body.layers[0].body.body", "body.layers[1].body"],
}


@pytest.mark.parametrize("name", EVERY)
def test_parts_say_what_belongs_to_whom_and_whole_is_their_inverse(name: str) -> None:
    net = EVERY[name]
    x = jnp.array([[1, 4, 2], [6, 0, 1]]) if name == "tied" else normal(1, (5, 6), "float64")
    params = net.init(jax.random.key(0), x)
    _, saved = net.forward(params, x)
    _, seen = record(net, params, x)
    parts = list(walk(net, params, saved, seen))
    assert [part.path for part in parts] == OF_EVERY[name]
    assert [part.path for part in parts if part.shared] == ["layers[0].layers[2]"] * (name == "tied")
    for part in parts:
        own, passed_here = (part.params, part.saved), part.gathered
        for _ in part.copies:
            own, passed_here = jax.tree.map(lambda a: a[0], (own, passed_here))
        made, kept = part.layer.forward(own[0], passed_here.x)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-12), (made, kept), (passed_here.y, own[1])
        )
        found = params
        for i in part.at:
            found = found[i]
        assert found is part.params
    for apart in (False, True):
        own = [part.params for part in walk(net, params, apart=apart)]
        again = rebuild(net, params, own, apart=apart)
        jax.tree.map(np.testing.assert_array_equal, again, params)


@dataclass(frozen=True, repr=False)
class Opaque(Layer):
    """A combinator that does not say which parameters belong to which part: a gain and a body."""

    body: Layer

    def init(self, key, x):
        return {"gain": jnp.full((), 0.5, x.dtype), "inside": self.body.init(key, x)}

    def forward(self, params, x, mode=Eval()):
        y, saved = self.body.forward(params["inside"], x, mode)
        return params["gain"] * y, (y, saved)

    def backward(self, params, saved, dy, gather=None):
        inside, dx = self.body.backward(params["inside"], saved[1], params["gain"] * dy)
        return {"gain": jnp.sum(saved[0] * dy), "inside": inside}, dx


def test_a_combinator_that_does_not_say_is_one_layer() -> None:
    net = Chain(Tanh(), Opaque(Dense(3)))
    params, x = start(net)
    _, (first, second) = record(net, params, x)
    np.testing.assert_array_equal(first.y, second.x)
    assert second.gradient.keys() == {"gain", "inside"}
    assert net.trainable(params) == ((), {"gain": True, "inside": {"w": True, "b": True}})
    assert len(summary(net, x).rows) == 2


class Half(Dense):
    def gradient(self, params, saved, delta):
        return jax.tree.map(lambda g: 0.5 * g, super().gradient(params, saved, delta))


class Missing(Head):
    def gradient(self, params, saved, delta):
        return ()


IDS = jnp.array([[1, 4, 4, 2, 0], [0, 6, 1, 3, 3]])


@pytest.mark.parametrize(
    ("net", "address", "wrong"),
    [
        (Tied(Embedding(7, 5), Half(5), Head(7)), "layers[1]", "Half(5)"),
        (Tied(Embedding(7, 5), Tanh(), Missing(7)), "layers[2]", "Missing(7)"),
    ],
)
def test_the_checker_names_the_wrong_layer_beside_a_tied_weight(net, address, wrong) -> None:
    report = check_gradients(net, net.init(jax.random.key(0), IDS), IDS)
    assert not report.ok
    (first, *_) = report.findings
    assert (first.evidence["address"], first.evidence["layer"]) == (address, wrong)


def test_the_checker_names_the_wrong_layer_of_a_gpt() -> None:
    net = gpt(7, depth=1, heads=1, features=4, length=6)
    dense = [leaf for _, leaf in leaves(net) if isinstance(leaf, Dense)]
    broken = map_leaves(lambda leaf: Half(4) if leaf is dense[-1] else leaf, net)
    report = check_gradients(broken, broken.init(jax.random.key(0), IDS), IDS)
    assert not report.ok
    assert report.findings[0].evidence["layer"] == "Half(4)"


def test_a_gather_says_how_its_results_add() -> None:
    net = Tied(Embedding(7, 5), Tanh(), Head(7))
    params = net.init(jax.random.key(0), IDS)
    y, saved = net.forward(params, IDS)

    def norm(layer, params, saved, delta):
        return sum(jnp.sum(g * g) for g in jax.tree.leaves(layer.gradient(params, saved, delta)))

    (first, _, last), _ = net.backward(params, saved, y, norm)
    (both, _, none), _ = net.backward(params, saved, y, adds(lambda a, b: a + b)(partial(norm)))
    assert none == ()
    np.testing.assert_allclose(both, first + last, rtol=1e-6)


@pytest.mark.parametrize("combine", [Chain, Branch, lambda *parts: Stack(parts[0], 2)])
def test_every_part_draws_with_a_key_of_its_own(combine) -> None:
    net = combine(Dropout(0.5), Dropout(0.5))
    _, saved = net.forward(
        net.init(jax.random.key(0), jnp.ones((8, 8))), jnp.ones((8, 8)), Train(jax.random.key(1))
    )
    masks = [m for m in jax.tree.leaves(saved) if m.dtype == bool]
    first, second = masks if len(masks) == 2 else masks[0]
    assert np.any(np.asarray(first) != np.asarray(second))


def test_errors_add_over_paths_and_none_is_no_path() -> None:
    a, b = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    ids, values = add_errors((None, a), (None, b))
    assert ids is None
    np.testing.assert_array_equal(values, [1.5, 1.0])
    np.testing.assert_array_equal(add_errors((None, a), (b, a))[0], b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain(), "Chain: expected at least one layer, got none"),
        (
            lambda: Chain(Dense(3), ReLU),
            r"Chain: argument 1 is not a layer: .*did you forget the parentheses",
        ),
        (lambda: Branch(Dense(3), jnp.tanh), "Branch: argument 1 is not a layer"),
        (lambda: Branch(Dense(3), merge="mean"), "merge must be one of sum, product, concat, got 'mean'"),
        (lambda: Stack(Dense(3), 0), "depth must be a positive integer, got 0"),
        (lambda: Stack(Dense(3), True), "depth must be a positive integer, got True"),
        (lambda: Dense(True), "Dense: features must be a positive integer, got True"),
        (
            lambda: start(Residual(Dense(3))),
            r"Residual > the body must return what it takes, float64\[5, 6\]",
        ),
        (lambda: start(Stack(Dense(3), 2)), r"Stack > the body must return what it takes"),
        (lambda: start(Branch(Dense(3), Dense(4))), r"Branch > merge='sum' needs outputs of one shape"),
        (
            lambda: Chain(Dense(3))((), jnp.ones(3)),
            "Chain: expected params as a tuple of 1, one a part, got tuple of 0",
        ),
        (
            lambda: Branch(Dense(3))(None, jnp.ones(3)),
            "Branch: expected params as a tuple of 1, one a part, got None",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_combinator_says_that_it_has_no_pull() -> None:
    with pytest.raises(TypeError, match="Chain has no pull: a leaf layer must write one"):
        Chain(Dense(3)).pull((), (), jnp.ones(3))
