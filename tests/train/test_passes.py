"""A batch in pieces is the batch: value, gradient, statistics, keys, memory, one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import (
    BatchNorm,
    Chain,
    Dense,
    Dropout,
    InputError,
    LayerNorm,
    SoftmaxCrossEntropy,
    SquaredError,
    Stack,
    Tanh,
    Train,
    make_epoch,
    make_step,
    value_and_grad,
)
from jaxbp.train.passes import in_pieces
from tests.proof import normal

NET = Chain(Dense(6), Tanh(), LayerNorm(), Dense(3))
X = normal(1, (11, 4), "float64")
LABELS = jnp.asarray([0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 2], jnp.int32)
VALUES = normal(2, (11, 3), "float64")


def start(net=NET, x=X):
    return jax.jit(net.init)(jax.random.key(0), x)


def same(got, expected, bar=1e-12):
    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=bar * max(float(np.abs(b).max()), 1e-3))

    jax.tree.map(check, got, expected)


@pytest.mark.parametrize(
    "pieces", [2, 3, 4, 11, 50]
)  # 11 examples: with and without a smaller last piece
@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (SoftmaxCrossEntropy(), LABELS),
        (SquaredError("sum"), VALUES),
        (SoftmaxCrossEntropy("sum", ignore=1), LABELS),
    ],
)
def test_pieces_add_up_to_the_batch(loss, y, pieces: int) -> None:
    params = start()
    value, grads, _ = jax.jit(in_pieces(NET, loss, pieces))(params, X, y, Train())
    same((value, grads), value_and_grad(NET, loss)(params, X, y))


def test_a_step_and_an_epoch_in_pieces() -> None:
    params, tx = start(), optax.sgd(0.05, 0.9)
    for make, args in (
        (make_step, (X, LABELS)),
        (lambda *a, **k: make_epoch(*a, 4, **k), (X, LABELS, jax.random.key(3))),
    ):
        runs = [
            make(NET, SoftmaxCrossEntropy(), tx, accumulate=n)(params, tx.init(params), *args)
            for n in (1, 3)
        ]
        same(*runs, bar=1e-10)


def test_every_piece_draws_for_itself() -> None:
    """Where all draw alike, equal examples in two pieces would lose the same units."""
    net, x = Chain(Dropout(0.5), Dense(2, bias=False)), jnp.ones((4, 64))
    params = start(net, x)
    _, grads, _ = in_pieces(net, SquaredError("sum"), 4)(
        params, x, jnp.ones((4, 2)), Train(jax.random.key(1))
    )
    seen = np.count_nonzero(np.any(np.asarray(grads[1]["w"]) != 0, axis=1))
    assert seen > 48  # of 64 inputs half are kept by one draw, 15 in 16 by one of four


def test_statistics_move_once_a_piece() -> None:
    net, x = BatchNorm(momentum=0.5), normal(5, (4, 3), "float64")
    params = start(net, x)
    _, _, moved = in_pieces(net, SquaredError("sum"), 2)(params, x, x, Train())
    expected = params["mean"]
    for rows in (x[::2], x[1::2]):  # pieces are strided
        expected = 0.5 * expected + 0.5 * rows.mean(axis=0)
    same(moved["mean"], expected)
    same({k: moved[k] for k in ("scale", "offset")}, {k: params[k] for k in ("scale", "offset")})
    tx = optax.sgd(0.1)
    after, *_ = make_step(net, SquaredError("sum"), tx, accumulate=2)(params, tx.init(params), x, x)
    same(after["mean"], expected)


@pytest.mark.parametrize(
    ("count", "pieces", "sizes"),
    [(4, 4, (2, 2)), (5, 4, (3, 2)), (7, 3, (4, 3)), (8, 3, (3, 3, 2)), (3, 2, (3,)), (1, 2, (1,))],
)
def test_no_piece_is_too_small_for_the_statistics(count: int, pieces: int, sizes) -> None:
    """A piece of one row has no variance: it would learn nothing, and say so nowhere."""
    net, x = BatchNorm(momentum=0.5), normal(6, (count, 3), "float64")
    params = start(net, x)
    _, _, moved = in_pieces(net, SquaredError("sum"), pieces)(params, x, x, Train())
    full = sum(size == sizes[0] for size in sizes)
    parts = [x[: full * sizes[0]][k::full] for k in range(full)]
    parts += [x[full * sizes[0] :]] if len(sizes) > full else []
    expected = params
    for rows in parts:
        assert len(rows) in sizes
        expected = net.update_statistics(expected, net.forward(expected, rows, Train())[1])
    same({k: moved[k] for k in ("mean", "var")}, {k: expected[k] for k in ("mean", "var")})


def test_scratch_memory_is_that_of_a_piece_and_one_program_serves(compiled) -> None:
    net = Stack(Chain(Dense(64), Tanh()), 8)
    x = normal(1, (512, 64), "float32")
    params, tx = start(net, x), optax.sgd(0.1)

    def scratch(n):
        step = make_step(net, SquaredError(), tx, accumulate=n)
        compiled = step.lower(params, tx.init(params), x, x, Train()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(8) < 0.4 * scratch(1)
    step = make_step(net, SquaredError(), tx, accumulate=8)
    compiled.clear()
    for _ in range(2):
        step(params, tx.init(params), x, x)
    assert compiled["step"] == 1


@pytest.mark.parametrize(
    ("pieces", "loss", "message"),
    [
        (2, SoftmaxCrossEntropy(ignore=0), "reduction='sum'"),
        (0, SquaredError(), "pieces must be a positive integer"),
    ],
)
def test_what_is_not_made_of_its_pieces(pieces, loss, message) -> None:
    with pytest.raises(InputError, match=message):
        make_step(NET, loss, accumulate=pieces)
