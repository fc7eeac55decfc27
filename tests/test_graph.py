"""What the harness does not see of `Graph`: equality with the other combinators, gather, bad wiring."""

import jax
import numpy as np
import pytest

from jaxbp import Add, Branch, Chain, Concat, Dense, Dropout, Graph, InputError, Residual, Tanh, Train
from jaxbp.layer import leaves, map_leaves
from tests.proof import by_hand, normal

DENSE, TANH = Dense(3), Tanh()
X = normal(1, (4, 3), "float64")
DY = normal(2, (4, 3), "float64")


def same(graph, params, net, theirs, dy=DY, mode=Train()):
    """Two networks that are one function, with the same parameters in another arrangement."""
    one, two = by_hand(graph, params, X, dy, mode), by_hand(net, theirs, X, dy, mode)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_it_can_say_what_the_other_combinators_say() -> None:
    params = DENSE.init(jax.random.key(0), X)
    chain = Graph(a=(DENSE, "x"), y=(TANH, "a"))
    same(chain, (params, ()), Chain(DENSE, TANH), (params, ()))
    residual = Graph(a=(DENSE, "x"), y=(Add(), ("x", "a")))
    same(residual, (params, ()), Residual(DENSE), params)
    branch = Graph(a=(DENSE, "x"), b=(TANH, "x"), y=(Concat(), ("a", "b")))
    dy = normal(3, (4, 6), "float64")
    same(branch, (params, (), ()), Branch(DENSE, TANH, merge="concat"), (params, ()), dy)


def test_several_inputs_and_outputs_keep_their_order() -> None:
    net = Graph(inputs=("u", "v"), outputs=("v", "y"), y=(Add(), ("u", "v")))
    u, v = normal(1, (2, 3), "float64"), normal(2, (2, 3), "float64")
    (first, second), saved = net.forward(((),), (u, v))
    np.testing.assert_array_equal(first, v)
    np.testing.assert_array_equal(second, u + v)
    _, (du, dv) = net.backward(((),), saved, (u, v))
    np.testing.assert_array_equal(du, v)
    np.testing.assert_array_equal(dv, u + v)


def test_gather_is_called_once_a_layer_however_many_read_it() -> None:
    net = Graph(a=(DENSE, "x"), b=(Add(), ("a", "a", "a")), c=(Concat(), ("b", "a")))
    params = net.init(jax.random.key(0), X)
    seen = []
    y, saved = net.forward(params, X)
    net.backward(params, saved, y, lambda layer, *_: seen.append(layer))
    assert seen == [Concat(), Add(), DENSE]


def test_it_is_a_layer_among_layers() -> None:
    net = Graph(a=(Chain(DENSE, TANH), "x"), y=(Dropout(0.5), "a"))
    assert [path for path, _ in leaves(net)] == [
        "layers[0].layers[0]",
        "layers[0].layers[1]",
        "layers[1]",
    ]
    assert hash(net) == hash(map_leaves(lambda leaf: leaf, net))
    assert (
        eval(
            repr(net), {"Graph": Graph, "Chain": Chain, "Dense": Dense, "Tanh": Tanh, "Dropout": Dropout}
        )
        == net
    )
    params = net.init(jax.random.key(0), X)
    kept = [net.forward(params, X, Train(jax.random.key(i)))[0] for i in (1, 1, 2)]
    np.testing.assert_array_equal(kept[0], kept[1])
    assert np.any(kept[0] != kept[2])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Graph(), "at least one layer"),
        (lambda: Graph(a=(DENSE, "b"), b=(TANH, "a")), "a reads 'b', which is not given before it"),
        (lambda: Graph(a=(DENSE, "x"), y=(TANH, "x")), "a: given, but neither read nor an output"),
        (lambda: Graph(inputs=("x", "z"), y=(TANH, "x")), "z: given, but neither"),
        (lambda: Graph(x=(TANH, "x")), "'x' is given twice"),
        (lambda: Graph(outputs="z", y=(TANH, "x")), "the output 'z' is not given"),
        (lambda: Graph(inputs=("u", "v"), y=(Add(), ("u", "v")))(((),), X), "x as a tuple of 2"),
        (lambda: Graph(y=(TANH, "x"))((), X), "params as a tuple of 1"),
        (lambda: Graph(y=(Add(), "x")).init(jax.random.key(0), X), "expected a tuple of arrays"),
    ],
)
def test_bad_wiring_is_one_line(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()
