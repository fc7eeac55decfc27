"""A sweep: every member is the network that would have been trained alone."""

import contextlib
import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from jaxbp import Chain, Dense, SoftmaxCrossEntropy, Tanh, make_epoch, make_sweep
from jaxbp.app import loop
from jaxbp.app.config import Sweep, read_config
from jaxbp.app.progress import Reporter
from jaxbp.app.report import read_metrics
from jaxbp.app.sweep import by_rate, run_sweep, start_sweep
from jaxbp.app.task import make_task
from jaxbp.cli import main

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_member_equals_the_network_trained_alone():
    net, loss = Chain(Dense(4), Tanh(), Dense(3)), SoftmaxCrossEntropy()
    x = jax.random.normal(jax.random.key(0), (10, 5), jnp.float32)
    y = jnp.arange(10) % 3
    keys = jax.random.split(jax.random.key(1), 3)
    rates = jnp.asarray([0.5, 0.1, 0.02], jnp.float32)
    start, epoch = make_sweep(net, loss, optax.adam, batch_size=4)
    params, opt_state = start(keys, rates, x)
    for _ in range(2):
        params, opt_state, losses = epoch(params, opt_state, x, y, keys)
    assert losses.shape == (3, 3)
    for i, (key, rate) in enumerate(zip(keys, rates, strict=True)):
        tx = optax.adam(float(rate))
        alone = net.init(key, x)
        state, run = tx.init(alone), make_epoch(net, loss, tx, 4)
        for _ in range(2):
            alone, state, alone_losses = run(alone, state, x, y, key)
        np.testing.assert_allclose(losses[i], alone_losses, rtol=1e-4)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)


def test_a_sweep_from_a_config_equals_single_runs(small):
    config = read_config(small)
    both = msgspec.structs.replace(config, sweep=Sweep(seeds=(0, 5), learning_rates=(0.01, 0.03)))
    task = make_task(both)
    outcome = run_sweep(both, task, *start_sweep(both, task))
    assert outcome.members == [(0, 0.01), (5, 0.01), (0, 0.03), (5, 0.03)]
    assert outcome.history.shape == (4, 4, 3)
    for index in (1, 2):
        seed, rate = outcome.members[index]
        one = msgspec.structs.replace(
            config,
            train=msgspec.structs.replace(config.train, seed=seed),
            optimizer=msgspec.structs.replace(config.optimizer, learning_rate=rate),
        )
        alone = loop.train(one, task, *loop.start(one, task))
        expected = [[r["loss"], r["test_loss"], r["test_accuracy"]] for r in alone.history]
        np.testing.assert_allclose(outcome.history[index], expected, rtol=1e-4)
        pairs = zip(
            jax.tree.leaves(outcome.member(index)), jax.tree.leaves(alone.state.params), strict=True
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


SWEEP = ["--sweep.seeds", "0", "1", "--sweep.learning-rates", "0.001", "0.05", "--train.prove"]


@pytest.fixture(scope="module")
def swept(small, tmp_path_factory):
    """The folder of a sweep, and what the command said."""
    folder, out = tmp_path_factory.mktemp("sweep"), io.StringIO()
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(out):
        assert main(["train", str(small), "--run.folder", str(folder), *SWEEP]) == 0
    return folder / "small", out.getvalue()


def test_the_command_trains_all_and_keeps_the_best(swept, capsys):
    path, out = swept
    found = json.loads((path / "summary.json").read_text())
    assert len(found["members"]) == 4
    best = max(found["members"], key=lambda m: (m["test_accuracy"], -m["test_loss"]))
    assert found["members"][found["best"]] == best
    assert best["learning_rate"] == 0.05
    assert "4 members in one compiled step" in out
    assert out.count(" best") == 2  # in the table, and in what was written
    assert (path / "curves.png").stat().st_size > 10_000
    assert set(load_file(path / "params.safetensors")) == {"0.w", "0.b", "3.w", "3.b"}
    assert main(["evaluate", str(path)]) == 0
    assert f"accuracy {best['test_accuracy']:.2%}" in capsys.readouterr().out
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["loss"]) for line in lines] == [4] * 4


def test_a_sweep_that_was_stopped_ends_with_the_same_bits(tmp_path, small, swept, monkeypatch, capsys):
    def interrupt(self, number, scores):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    paths, parts = (tmp_path / "small", swept[0]), ["train", str(small), *SWEEP]
    parts += ["--run.folder", str(tmp_path)]
    monkeypatch.setattr(Reporter, "members", interrupt)
    assert main(parts) == 130
    monkeypatch.undo()
    assert "interrupted after 3 epochs; --resume goes on" in capsys.readouterr().out
    assert main([*parts, "--resume"]) == 0
    assert "resumed   after epoch 3" in capsys.readouterr().out
    found, expected = (read_metrics(path / "metrics.jsonl") for path in paths)
    for record in (*found, *expected):
        del record["seconds"]
    assert found == expected
    assert [r["epoch"] for r in found] == [1, 2, 3, 4]
    a, b = (json.loads((path / "summary.json").read_text()) for path in paths)
    assert a["members"] == b["members"]
    assert a["stopped"] == "epochs"
    a, b = (load_file(path / "params.safetensors") for path in paths)
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)
    for flags, says in (
        (["--resume"], "expected more than the 4 epochs already done, got 4"),
        (["--resume", "--sweep.seeds", "0"], "other settings: sweep.seeds was (0, 1), is (0,)"),
        (["--resume", "--optimizer.b1", "0.8"], "other settings: optimizer.b1 was 0.9, is 0.8"),
        ([], "this run folder already exists"),
    ):
        assert main([*parts, *flags]) == 2
        assert says in capsys.readouterr().err


def test_rates_are_ranked_by_their_mean():
    from jaxbp.app.sweep import SweepOutcome

    history = np.zeros((4, 1, 3))
    history[:, 0, 2] = [0.9, 0.8, 0.95, 0.85]
    members = [(0, 0.1), (1, 0.1), (0, 0.2), (1, 0.2)]
    rows = by_rate(SweepOutcome(members, history, loop.State((), ()), "epochs", 1.0))
    assert [row[0] for row in rows] == [0.2, 0.1]
    assert rows[0][1:] == pytest.approx((0.9, 0.1 / 2**0.5, 2))


def test_keys_and_rates_must_pair():
    start, _ = make_sweep(Dense(2), SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match="one learning rate a key"):
        start(jax.random.split(jax.random.key(0), 2), jnp.ones(3), jnp.ones((1, 2)))
