"""Runs: the folder's content, stopping for each reason, resuming to the same bits, one compilation."""

import json
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jaxbp import Chain, Dense, ReLU, SoftmaxCrossEntropy, make_epoch
from jaxbp.app import loop
from jaxbp.app.config import read_config
from jaxbp.app.loop import milestones, prove_gradient, start, worst
from jaxbp.app.optimizers import OPTIMIZERS, Adam, make, schedule
from jaxbp.app.pictures import draw_confusion, draw_curves
from jaxbp.app.report import read_metrics
from jaxbp.app.task import METRICS, keys, make_score, make_task
from jaxbp.cli import main

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def run(config, folder, *flags) -> int:
    return main(["train", str(config), "--run.folder", str(folder), *flags])


def summary(path) -> dict:
    return json.loads((path / "summary.json").read_text())


def params(path) -> dict[str, np.ndarray]:
    return load_file(path / "params.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# --- the run folder ---------------------------------------------------------------------------------


def test_the_run_folder_is_complete(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "checkpoints", "checkpoints.json", "config.toml", "confusion.png", "curves.png", "data.json",
        "metrics.jsonl", "params.safetensors", "summary.json",
    }  # fmt: skip
    assert (trained / "curves.png").read_bytes()[:8] == PNG
    assert (trained / "confusion.png").read_bytes()[:8] == PNG
    records = read_metrics(trained / "metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    found = summary(trained)
    assert found["test_accuracy"] == records[-1]["test_accuracy"] >= 0.9
    assert (found["epochs"], found["stopped"], found["parameters"]) == (
        4,
        "epochs",
        6 * 5 + 5 + 5 * 3 + 3,
    )
    assert (found["train_examples"], found["test_examples"], found["seed"]) == (48, 12, 0)
    assert {"python", "jax", "jaxlib", "optax", "jaxbp"} <= found["versions"].keys()
    assert {name: p.shape for name, p in params(trained).items()} == {
        "0.w": (6, 5), "0.b": (5,), "3.w": (5, 3), "3.b": (3,),
    }  # fmt: skip


def test_the_config_in_the_folder_is_the_resolved_one(trained, small):
    saved, given = read_config(trained / "config.toml"), read_config(small)
    assert saved.train == given.train
    assert (saved.model, saved.data, saved.optimizer) == (given.model, given.data, given.optimizer)
    assert (saved.run.folder, saved.run.name) == (str(trained.parent), "small")


def test_the_reported_figures_are_those_of_the_saved_parameters(trained):
    config = read_config(trained / "config.toml")
    task = make_task(config)
    p = params(trained)
    h = np.maximum(task.data.test_x @ p["0.w"] + p["0.b"], 0) @ p["3.w"] + p["3.b"]
    log_p = h - h.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(len(h)), task.data.test_y].mean()
    assert summary(trained)["test_loss"] == pytest.approx(loss, rel=1e-5)
    right = (h.argmax(axis=1) == task.data.test_y).mean()
    assert summary(trained)["test_accuracy"] == pytest.approx(right)


def test_an_existing_run_is_not_overwritten_unasked(trained, small, capsys):
    before = (trained / "summary.json").read_bytes()
    assert run(small, trained.parent) == 2
    message = (
        "this run folder already exists; choose another --run.name, go on with it (--resume) or replace"
    )
    assert capsys.readouterr().err.startswith(f"jaxbp: error: {trained}: {message}")
    assert (trained / "summary.json").read_bytes() == before


def test_overwriting_replaces_a_run_and_nothing_else(tmp_path, small, capsys):
    assert run(small, tmp_path, "--train.epochs", "1") == 0
    assert run(small, tmp_path, "--train.epochs", "2", "--run.overwrite") == 0
    assert summary(tmp_path / "small")["epochs"] == 2
    assert not read_config(tmp_path / "small" / "config.toml").run.overwrite
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    assert run(small, tmp_path, "--run.name", "mine", "--run.overwrite") == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path, small, trained):
    assert run(small, tmp_path, "--run.name", "a") == 0
    assert same(params(tmp_path / "a"), params(trained))
    assert run(small, tmp_path, "--run.name", "b", "--train.seed", "1") == 0
    assert not same(params(tmp_path / "b"), params(trained))


# --- reasons to stop --------------------------------------------------------------------------------


def test_it_stops_below_epsilon_and_says_so(tmp_path, capsys):
    config = str(ROOT / "configs" / "notes_network.toml")
    assert run(config, tmp_path, "--train.stop-below", "0.01") == 0
    out = capsys.readouterr().out
    records = read_metrics(tmp_path / "notes_network" / "metrics.jsonl")
    assert records[0]["loss"] == pytest.approx(0.105491115823, rel=1e-5)  # the notes' own loss
    assert records[-1]["loss"] < 0.01 <= records[-2]["loss"]
    assert f"stopped after {len(records)} epochs: the loss" in out
    assert "is below 0.01" in out
    assert summary(tmp_path / "notes_network")["stopped"] == "loss below train.stop_below"
    assert "largest relative error" in out
    assert re.search(rf"device +{jax.default_backend()}", out)


def test_one_epoch_of_the_notes_is_the_notes_step(tmp_path):
    config = str(ROOT / "configs" / "notes_network.toml")
    assert run(config, tmp_path, "--train.epochs", "1", "--train.no-prove") == 0
    p = params(tmp_path / "notes_network")
    assert p["2.w"][1, 0] == pytest.approx(0.93037670618, rel=1e-6)  # w212
    assert p["2.w"][1, 1] == pytest.approx(0.2 - 0.13037670618, rel=1e-6)  # w222
    assert p["0.w"][0, 2] == pytest.approx(-0.3 - 0.00315935676, rel=1e-6)  # w131


def test_ctrl_c_keeps_what_was_reached(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(loop, "make_score", interrupting(make_score, at=3))
    assert run(small, tmp_path) == 130
    path = tmp_path / "small"
    found = summary(path)
    assert (found["stopped"], found["epochs"]) == ("interrupted", 2)
    assert len(read_metrics(path / "metrics.jsonl")) == 2
    assert "interrupted after 2 epochs" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(small, tmp_path, "--resume") == 0
    assert summary(path)["epochs"] == 4


def interrupting(make, at):
    """A `make_score` whose scores send Ctrl-C to this process in epoch `at` (two scores an epoch)."""

    def wrapped(*args):
        score, calls = make(*args), [0]

        def count(*args):
            calls[0] += 1
            if calls[0] == 2 * at - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return score(*args)

        return count

    return wrapped


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(tmp_path, small, capsys):
    flags = ["--optimizer.name", "sgd", "--optimizer.learning-rate", "1e4", "--train.epochs", "50"]
    assert run(small, tmp_path, *flags, "--train.loss", "squared_error") == 2
    err = capsys.readouterr().err
    reached = summary(tmp_path / "small")["epochs"]
    assert re.match(rf"jaxbp: error: diverged: the loss was (nan|inf) in epoch {reached + 1}; ", err)
    assert err.count("\n") == 1
    assert all(np.isfinite(p).all() for p in params(tmp_path / "small").values())
    assert len(read_metrics(tmp_path / "small" / "metrics.jsonl")) == reached


def test_a_wrong_gradient_is_not_trained_with(small, monkeypatch):
    def too_large(self, params, saved, delta):
        return jax.tree.map(lambda g: 1.01 * g, right(self, params, saved, delta))

    config = read_config(small)
    task = make_task(config)
    state, _ = start(config, task)
    name, error = prove_gradient(config, task, state.params)
    assert error <= 1e-5
    assert name in ("0.w", "0.b", "3.w", "3.b")
    right = Dense.gradient
    monkeypatch.setattr(Dense, "gradient", too_large)
    with pytest.raises(
        ValueError, match=r"the gradient by hand of \d\.[wb] differs from jax\.grad's by 1"
    ):
        prove_gradient(config, task, state.params)


def test_the_worst_error_may_be_nan():
    assert worst({"[0]['w']": 1.0, "[2][1]['b']": float("nan")})[0] == "2.1.b"


# --- resuming ---------------------------------------------------------------------------------------


def test_a_resumed_run_ends_with_the_same_bits(tmp_path, small, trained, capsys):
    assert run(small, tmp_path, "--train.epochs", "3") == 0
    assert run(small, tmp_path, "--resume") == 0
    assert "resumed   after epoch 3" in capsys.readouterr().out
    assert same(params(tmp_path / "small"), params(trained))

    def losses(path):
        return [(r["epoch"], r["loss"]) for r in read_metrics(path / "metrics.jsonl")]

    assert losses(tmp_path / "small") == losses(trained)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.seed", "3"], "cannot resume with other settings: train.seed was 0, is 3"),
        (["--model.hidden", "4"], "cannot resume with other settings: model.hidden was (5,), is (4,)"),
        ([], "train.epochs: expected more than the 4 epochs already done, got 4"),
        (["--run.name", "other"], "other: no such run folder"),
    ],
)
def test_what_cannot_be_resumed(trained, small, flags, message, capsys):
    assert run(small, trained.parent, "--resume", *flags) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")
    assert summary(trained)["epochs"] == 4


def test_metrics_beyond_the_checkpoint_are_written_again(tmp_path, small):
    assert run(small, tmp_path, "--train.epochs", "3") == 0
    path = tmp_path / "small" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"epoch": 4, "loss": 9}\n{"epoch": 5, "lo')  # killed while writing
    assert run(small, tmp_path, "--resume") == 0
    assert [record["epoch"] for record in read_metrics(path)] == [1, 2, 3, 4]
    assert read_metrics(path)[-1]["loss"] != 9


# --- compiled once ----------------------------------------------------------------------------------


def test_kfac_is_an_optimizer_like_any_other_and_resumes(small, tmp_path):
    flags = ["--optimizer.name", "kfac", "--optimizer.max-change", "1", "--train.epochs"]
    assert run(small, tmp_path / "whole", *flags, "3") == 0
    assert run(small, tmp_path / "parts", *flags, "2") == 0
    assert run(small, tmp_path / "parts", *flags, "3", "--resume") == 0
    whole, parts = (next((tmp_path / way).iterdir()) for way in ("whole", "parts"))
    assert same(params(whole), params(parts))


def test_a_whole_run_traces_its_epoch_once(small):
    traces = []

    class Counting(Dense):
        def gradient(self, params, saved, delta):
            traces.append(1)
            return super().gradient(params, saved, delta)

    config = read_config(small)
    task = make_task(config)
    task = type(task)(Chain(Counting(5), ReLU(), Dense(3)), task.loss, task.data, task.batch_size)
    state, tx = start(config, task)
    loop.train(config, task, state, tx)
    once = len(traces)
    traces.clear()
    epoch = make_epoch(task.net, task.loss, tx, task.batch_size)
    x, y = jnp.asarray(task.data.x), jnp.asarray(task.data.y)
    jax.eval_shape(epoch, state.params, state.opt_state, x, y, keys(0)[1])
    assert once == len(traces)  # four epochs trace as often as one


# --- optimizers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda o: optax.sgd(o.learning_rate)),
        ("adam", lambda o: optax.adam(o.learning_rate, o.b1, o.b2, o.epsilon)),
        (
            "adamw",
            lambda o: optax.adamw(o.learning_rate, o.b1, o.b2, o.epsilon, weight_decay=o.weight_decay),
        ),
        ("rmsprop", lambda o: optax.rmsprop(o.learning_rate, o.decay, o.epsilon, eps_in_sqrt=True)),
        ("lion", lambda o: optax.lion(o.learning_rate, o.b1, o.b2, weight_decay=o.weight_decay)),
    ],
)
def test_optimizers_are_those_of_optax(name, reference):
    config = OPTIMIZERS[name]()
    p = {"w": jnp.asarray([[1.0, -2.0, 0.5]], jnp.float32)}
    a, b = make(config, 1, 1), reference(config)
    state_a, state_b, p_a, p_b = a.init(p), b.init(p), p, p
    for i in range(3):
        g = {"w": jnp.asarray([[0.3, -0.1 * i, 2.0]], jnp.float32)}
        u, state_a = a.update(g, state_a, p_a)
        p_a = optax.apply_updates(p_a, u)
        u, state_b = b.update(g, state_b, p_b)
        p_b = optax.apply_updates(p_b, u)
    np.testing.assert_allclose(p_a["w"], p_b["w"], rtol=1e-6)
    assert not np.allclose(p_a["w"], p["w"])


def test_every_optimizer_is_compared():
    marks = test_optimizers_are_those_of_optax.pytestmark[0].args[1]
    assert {case[0] for case in marks} | {"kfac"} == OPTIMIZERS.keys()  # which asks for a network


def test_momentum_is_optax_s():
    a, b = make(OPTIMIZERS["sgd"](momentum=0.9, nesterov=True), 1, 1), optax.sgd(0.1, 0.9, nesterov=True)
    g = {"w": jnp.asarray([1.0, -1.0], jnp.float32)}
    state_a, state_b = a.init(g), b.init(g)
    for _ in range(2):
        u, state_a = a.update(g, state_a)
        v, state_b = b.update(g, state_b)
    np.testing.assert_allclose(u["w"], v["w"], rtol=1e-6)


def test_clipping_bounds_the_step():
    tx = make(OPTIMIZERS["sgd"](learning_rate=0.5, clip=1.0), 1, 1)
    g = {"w": jnp.asarray([3.0, 4.0], jnp.float32)}
    u, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(u["w"], [-0.3, -0.4], rtol=1e-6)


def test_the_schedule_rises_then_falls_along_a_half_cosine():
    config = Adam(schedule="cosine", warmup=2)
    factor = jax.vmap(schedule(config, steps=5, epochs=10))(jnp.arange(51))
    np.testing.assert_allclose(factor[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(factor[10:], 0.5 + 0.5 * np.cos(np.pi * np.arange(41) / 40), atol=1e-6)
    flat = jax.vmap(schedule(Adam(warmup=1), steps=4, epochs=3))(jnp.arange(12))
    np.testing.assert_allclose(flat, [0.25, 0.5, 0.75] + [1.0] * 9)


# --- evaluate, predict, runs ------------------------------------------------------------------------


def test_evaluate_reports_what_training_did(trained, capsys):
    assert main(["evaluate", str(trained)]) == 0
    out = capsys.readouterr().out
    found = summary(trained)
    assert f"accuracy {found['test_accuracy']:.2%}, loss {found['test_loss']:.4g}, on 12 examples" in out
    assert re.search(r"^ *0 +4 +", out, re.MULTILINE)  # four of each class are held out


def test_predict_finds_the_classes(trained, blobs, tmp_path, capsys):
    np.save(tmp_path / "new.npy", 4 * np.eye(6)[:3])
    assert main(["predict", str(trained), str(tmp_path / "new.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "row,class,probability"
    assert [line.split(",")[:2] for line in lines[1:]] == [["0", "0"], ["1", "1"], ["2", "2"]]
    assert all(1 / 3 < float(line.split(",")[2]) <= 1 for line in lines[1:])
    np.savetxt(tmp_path / "new.csv", 4 * np.eye(6)[:3], delimiter=",")
    out = tmp_path / "out.csv"
    assert main(["predict", str(trained), str(tmp_path / "new.csv"), "--output", str(out)]) == 0
    assert out.read_text().splitlines() == lines


def test_predict_refuses_other_inputs(trained, tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("1,2,3\n")
    assert main(["predict", str(trained), str(path)]) == 2
    assert capsys.readouterr().err == (
        f"jaxbp: error: {path}: expected rows of 6 features (inputs of shape [6]), got shape [1, 3]\n"
    )
    assert main(["predict", str(trained), str(tmp_path / "none.npy")]) == 2
    assert capsys.readouterr().err == f"jaxbp: error: {tmp_path}/none.npy: no such file\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evaluate", "nowhere"], "nowhere: no such run folder"),
        (["evaluate"], "evaluate: the following arguments are required: RUN"),
        (["predict", "a", "b", "c"], "predict: unrecognized arguments: c"),
        (["runs", "nowhere"], "nowhere: no such folder of runs"),
    ],
)
def test_small_commands_say_what_is_wrong(argv, message, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err == f"jaxbp: error: {message}\n"


def test_parameters_that_do_not_fit_are_named(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.toml").write_bytes((trained / "config.toml").read_bytes())
    for change, message in (
        (lambda p: p.pop("3.b"), "expected a parameter 3.b, got 0.b, 0.w, 3.w"),
        (
            lambda p: p.update({"0.w": np.zeros((6, 4), np.float32)}),
            "0.w: expected shape [6, 5], got [6, 4]",
        ),
    ):
        p = params(trained)
        change(p)
        save_file(p, copy / "params.safetensors")
        assert main(["evaluate", str(copy)]) == 2
        assert capsys.readouterr().err == f"jaxbp: error: {copy}/params.safetensors: {message}\n"
    raw = (trained / "params.safetensors").read_bytes()
    (copy / "params.safetensors").write_bytes(raw[:-4])
    assert main(["evaluate", str(copy)]) == 2
    assert "truncated or not safetensors" in capsys.readouterr().err


def test_runs_are_listed(trained, tmp_path, capsys):
    assert main(["runs", str(trained.parent)]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"small .*{summary(trained)['test_accuracy']:.2%}.* epochs ", out)
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs yet" in capsys.readouterr().out


def test_a_batch_larger_than_the_data(small, tmp_path, capsys):
    assert run(small, tmp_path, "--train.batch-size", "49") == 2
    assert capsys.readouterr().err == (
        "jaxbp: error: train.batch_size: expected at most the 48 training examples, got 49\n"
    )
    assert not (tmp_path / "small").exists()


# --- lines and pictures -----------------------------------------------------------------------------


def test_a_batch_in_pieces_by_the_command(tmp_path, small):
    """The same steps, without what is drawn anew for every piece."""
    losses = []
    for pieces in (1, 4):
        flags = ["--model.dropout", "0", "--train.epochs", "2", "--train.accumulate", str(pieces)]
        assert run(small, tmp_path, *flags, "--run.name", f"pieces{pieces}") == 0
        path = tmp_path / f"pieces{pieces}"
        assert read_config(path / "config.toml").train.accumulate == pieces
        losses.append([record["loss"] for record in read_metrics(path / "metrics.jsonl")])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_the_number_of_lines_is_bounded():
    assert milestones(1, 3) == [1, 2, 3]
    many = milestones(11, 100_000)
    assert (many[0], many[-1]) == (11, 100_000)
    assert len(many) <= 21


def test_lines_away_from_a_terminal(tmp_path, small, capsys):
    assert run(small, tmp_path, "--train.epochs", "60") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert 15 <= len(lines) <= 21
    assert re.match(r"epoch +1/60  loss [\d.]+ +accuracy +[\d.]+% +[\d,]+ ex/s", lines[0])
    assert lines[-1].startswith("epoch 60/60")


def test_the_loss_inside_a_long_epoch(tmp_path, small):
    """However many calls it takes, and in a run of few epochs only."""
    records = []
    for calls in ("1000", "5"):
        flags = ["--train.epochs", "2", "--train.batch_size", "4", "--train.steps_per_call", calls]
        assert run(small, tmp_path, *flags, "--run.name", f"calls{calls}") == 0
        records.append(read_metrics(tmp_path / f"calls{calls}" / "metrics.jsonl"))
    for one, parts in zip(*records, strict=True):
        assert len(one["losses"]) == 12  # steps of an epoch: fewer than there are points
        np.testing.assert_allclose(np.mean(one["losses"]), one["loss"], rtol=1e-12)
        np.testing.assert_allclose(parts["losses"], one["losses"], rtol=1e-5)
        assert np.ptp(one["losses"]) > 0
    draw_curves(tmp_path / "a.png", records[0][:1], "one epoch", METRICS["classes"])
    assert run(small, tmp_path, "--train.epochs", "11") == 0
    assert "losses" not in read_metrics(tmp_path / "small" / "metrics.jsonl")[0]


def test_pictures_of_the_smallest_runs(tmp_path):
    record = {"epoch": 1, "loss": 0.0, "test_loss": 0.0, "accuracy": 0.0, "test_accuracy": 0.0}
    draw_curves(tmp_path / "a.png", [record], "one epoch", METRICS["classes"])
    draw_confusion(tmp_path / "b.png", np.asarray([[0, 0], [3, 0]]), ("no", "yes"))
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_a_score_is_the_same_in_chunks(monkeypatch):
    from jaxbp.app import task

    net, loss = Dense(3), SoftmaxCrossEntropy()
    x = jax.random.normal(jax.random.key(0), (7, 2), jnp.float32)
    y = jnp.asarray([0, 1, 2, 0, 1, 2, 0])
    p = net.init(jax.random.key(1), x)
    whole = make_score(net, loss)(p, x, y)
    monkeypatch.setattr(task, "CHUNK", 3)
    parts = make_score(net, loss)(p, x, y)
    np.testing.assert_allclose(parts[:2], whole[:2], rtol=1e-6)
    np.testing.assert_array_equal(parts[2], whole[2])
