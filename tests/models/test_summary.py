"""A summary's figures against counts made by other means."""

import io

import jax
import numpy as np
import pytest

from jaxbp import (
    LSTM,
    BatchNorm,
    Chain,
    Conv,
    Dense,
    Flatten,
    Graph,
    MaxPool,
    ReLU,
    Residual,
    Stack,
    summary,
)
from jaxbp.models import gpt
from jaxbp.summary import operations

X = jax.ShapeDtypeStruct((4, 8, 8, 3), "float32")
NET = Chain(Conv(6, 3), BatchNorm(), ReLU(), MaxPool(2), Flatten(), Dense(10))


def test_the_figures_of_a_small_network() -> None:
    table = summary(NET, X)
    conv, norm, relu, pool, _, dense = table.rows
    assert (conv.output, conv.parameters) == ("[4, 8, 8, 6]", 3 * 3 * 3 * 6 + 6)
    assert conv.forward == 2 * (4 * 8 * 8) * (3 * 3 * 3) * 6
    assert conv.backward == 2 * conv.forward  # the error to the input, and that to the kernel
    assert conv.saved == 4 * (4 * 8 * 8 * 3)
    assert (norm.parameters, norm.saved) == (4 * 6, 4 * (4 * 8 * 8 * 6 + 4 * 6))
    assert (relu.forward, relu.parameters, pool.saved) == (0, 0, 4 * 4 * 4 * 6)
    assert (dense.forward, dense.backward) == (2 * 4 * 96 * 10, 4 * 4 * 96 * 10)
    assert (table.parameters, table.trainable) == (168 + 24 + 970, 168 + 24 + 970 - 12)
    # x is given; kept are the convolution's output, the mean in two parts and two more statistics, h, the
    # winners, the pooled image
    assert table.saved == 4 * (4 * 64 * 6) * 2 + 4 * 24 + 4 * 96 + 4 * 4 * 96
    assert table.forward == conv.forward + dense.forward


def test_copies_in_a_stack_count_as_many_times() -> None:
    net = Stack(Residual(Chain(Dense(8), ReLU())), 5)
    chain = Chain(*(Residual(Chain(Dense(8), ReLU())) for _ in range(5)))
    x = jax.ShapeDtypeStruct((4, 8), "float32")
    stacked, plain = summary(net, x), summary(chain, x)
    assert [row.copies for row in stacked.rows] == [5, 5]
    for field in ("parameters", "forward", "backward"):
        assert getattr(stacked, field) == getattr(plain, field) > 0
    assert stacked.rows[0].saved == sum(row.saved for row in plain.rows[::2])


def test_operations_follow_loops_and_branches() -> None:
    a = jax.ShapeDtypeStruct((4, 4), "float32")

    def loop(v):
        return jax.lax.fori_loop(0, 7, lambda i, u: u @ u, v)

    def branch(v):
        return jax.lax.cond(True, lambda u: u @ u @ u, lambda u: u, v)

    one = 2 * 4**3
    assert operations(lambda v: jax.jit(lambda u: u @ u)(v), a) == one
    assert operations(loop, a) == 7 * one
    assert operations(branch, a) == 2 * one


def test_the_operations_of_a_transformer_and_an_lstm_are_those_of_the_textbook() -> None:
    b, t, d, depth, v = 8, 12, 16, 3, 32
    net = gpt(v, depth=depth, heads=4, features=d, length=t)
    table = summary(net, jax.ShapeDtypeStruct((b, t), "int32"))
    attention = 4 * d * d * b * t + 2 * b * t * t * d  # four projections; scores, and reading by them
    assert table.forward == 2 * (depth * (attention + 8 * d * d * b * t) + d * v * b * t)
    again = depth * 2 * b * t * t * d  # the scores, computed anew on the way back
    assert table.backward == 2 * table.forward + again
    kept = 5 * b * t * d + b * 4 * t  # x, q, k, v, o; the log-sum-exp of every head
    row = next(row for row in table.rows if row.layer == "Attention(4, causal=True)")
    assert row.saved == depth * (4 * kept + b * t)  # and a flag a place
    lstm = summary(LSTM(6), jax.ShapeDtypeStruct((2, 5, 3), "float32"))
    assert lstm.forward == 2 * (2 * 5) * (3 + 6) * 24
    assert lstm.backward == 2 * lstm.forward


def test_a_grouped_convolution_costs_its_share() -> None:
    x = jax.ShapeDtypeStruct((2, 5, 8), "float32")
    whole, grouped, depthwise = (summary(Conv(8, (3,), groups=g), x).rows[0] for g in (1, 4, 8))
    assert whole.forward == 4 * grouped.forward == 8 * depthwise.forward
    assert whole.backward == 4 * grouped.backward == 8 * depthwise.backward


@pytest.mark.parametrize("net", [NET, Graph(a=(Conv(2, 3), "x"), y=(ReLU(), "a"))], ids=str)
def test_it_shows_in_plain_text_in_rich_and_in_html(net) -> None:
    rich = pytest.importorskip("rich.console")
    table = summary(net, X)
    console = rich.Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    for text in (str(table), console.export_text(), table._repr_html_()):
        for row in table.rows:
            assert row.layer.split("(")[0] in text
            assert row.output in text
        assert f"{table.parameters:,}" in text
    widths = {len(line) for line in str(table).splitlines()}
    assert max(widths) < 120
    assert np.isfinite(table.saved)
