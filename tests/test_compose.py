"""What the harness does not see of the combinators: keys, gather, compile size, addresses, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import (
    Branch,
    Chain,
    Dense,
    Dropout,
    InputError,
    ReLU,
    Residual,
    SquaredError,
    Stack,
    Tanh,
    Train,
    value_and_grad,
)
from jaxbp.compose import Record, add_errors
from jaxbp.layer import children, is_leaf, leaves, map_leaves
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
    _, passed = jax.jit(value_and_grad(map_leaves(Record, NET), SquaredError()))(params, x, target)
    first = passed[0]
    np.testing.assert_array_equal(first["x"], x)
    np.testing.assert_allclose(first["gradient"]["w"], grads[0]["w"], rtol=1e-13)
    np.testing.assert_allclose(first["dx"], first["dy"] @ params[0]["w"].T, rtol=1e-12)
    assert passed[1][0]["x"].shape == (3, 5, 4)


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
