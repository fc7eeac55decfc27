"""The last batch of an epoch: dropped when asked to, never too small for the network's statistics."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import BatchNorm, Chain, Dense, InputError, SquaredError, make_epoch, make_step, make_sweep
from jaxbp.cli import main
from jaxbp.train.batches import Batches

pytestmark = pytest.mark.usefixtures("standard_promotion")

NET, LOSS = Chain(Dense(4), BatchNorm(), Dense(2)), SquaredError()
PLAIN = Chain(Dense(4), Dense(2))


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [
        (Batches(22, 5), [5, 5, 5, 5, 2]),
        (Batches(20, 5), [5, 5, 5, 5]),
        (Batches(21, 5), [5, 5, 5, 5, 1]),
        (Batches(21, 5, least=2), [5, 5, 5, 6]),
        (Batches(22, 5, least=2), [5, 5, 5, 5, 2]),
        (Batches(6, 5, least=2), [6]),
        (Batches(22, 5, drop_last=True), [5, 5, 5, 5]),
        (Batches(21, 5, drop_last=True, least=2), [5, 5, 5, 5]),
        (Batches(3, 1, least=2), [1, 1, 1]),
        (Batches(7, 7), [7]),
    ],
)
def test_the_sizes_of_steps(batches, sizes):
    np.testing.assert_allclose(batches.shares, np.asarray(sizes) / sum(sizes), rtol=1e-15)
    assert (batches.steps, batches.seen) == (len(sizes), sum(sizes))
    assert batches.full * batches.size + batches.last == batches.seen
    # Something is said wherever it is not simply as asked.
    simple = sizes[:-1] == [batches.size] * (len(sizes) - 1) and sum(sizes) == batches.count
    assert bool(batches.notes()) == (
        not simple or sizes[-1] > batches.size or batches.size < batches.least
    )


def data(count):
    keys = jax.random.split(jax.random.key(3))
    return jax.random.normal(keys[0], (count, 3)), jax.random.normal(keys[1], (count, 2))


@pytest.mark.parametrize(
    ("net", "count", "drop_last", "cuts"),
    [
        (NET, 11, False, [(0, 5), (5, 11)]),
        (NET, 12, False, [(0, 5), (5, 10), (10, 12)]),
        (NET, 6, False, [(0, 6)]),
        (NET, 11, True, [(0, 5), (5, 10)]),
        (PLAIN, 11, False, [(0, 5), (5, 10), (10, 11)]),
        (PLAIN, 12, True, [(0, 5), (5, 10)]),
    ],
)
def test_an_epoch_is_those_steps(net, count, drop_last, cuts):
    x, y = data(count)
    tx = optax.sgd(0.2, momentum=0.5)
    params = net.init(jax.random.key(0), x)
    epoch = make_epoch(net, LOSS, tx, 5, shuffle=False, drop_last=drop_last)
    ours, _, losses = epoch(params, tx.init(params), x, y, jax.random.key(1))
    step, state, expected = make_step(net, LOSS, tx), tx.init(params), []
    for start, end in cuts:
        params, state, value = step(params, state, x[start:end], y[start:end])
        expected.append(value)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, params)


def test_members_of_a_sweep_take_the_same_steps():
    x, y = data(11)
    for drop_last, steps in ((False, 2), (True, 2)):
        start, epoch = make_sweep(NET, LOSS, optax.sgd, 5, drop_last=drop_last)
        keys = jax.random.split(jax.random.key(1), 2)
        params, state = start(keys, jnp.asarray([0.1, 0.01]), x)
        *_, losses = epoch(params, state, x, y, keys)
        assert losses.shape == (2, steps)
        assert bool(jnp.all(jnp.isfinite(losses)))


def test_batches_that_cannot_be():
    for size, says in (
        (0, "size must be a positive integer, got 0"),
        (6, "at most the 5 examples, got 6"),
    ):
        with pytest.raises(InputError, match=says):
            Batches(5, size)


CONFIG = """
[data]
name = "file"
path = "{path}"
test_share = 0.2
[model]
name = "resnet"
widths = [2]
[train]
epochs = 1
batch_size = 8
prove = false
steps_per_call = 1
"""


def test_a_run_says_what_becomes_of_the_last_batch(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(21, 4, 4, 1)), y=np.arange(21) % 2)
    config = tmp_path / "r.toml"
    config.write_text(CONFIG.format(path=tmp_path / "x.npz"))  # 17 to train on: 8, 8, 1
    flags = ["--run.folder", str(tmp_path), "--data.test-share", "0.19"]
    for name, more, says, batches in (
        ("joined", [], "the 1 example that is left over joins the batch before, now of 9", [8, 9]),
        ("dropped", ["--train.drop-last"], "1 of the examples are left out of every epoch", [8, 8]),
        ("plain", ["--model.name", "mlp", "--model.hidden", "3"], "", [8, 8, 1]),
    ):
        assert main(["train", str(config), *flags, "--run.name", name, *more]) == 0
        out = capsys.readouterr().out
        assert says in out
        assert ("note" in out) == bool(says)
        found = json.loads((tmp_path / name / "summary.json").read_text())
        assert (found["train_examples"], found["batches"]) == (
            17,
            {"steps": len(batches), "last": batches[-1]},
        )
