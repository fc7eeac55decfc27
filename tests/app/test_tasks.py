"""What can be learnt: classes, one logit, values, an image itself; and how good that is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxbp import Chain, Dense, Dropout, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError, Tanh
from jaxbp.app.augment import change
from jaxbp.app.config import read_config
from jaxbp.app.run import probabilities
from jaxbp.app.task import labels, make_score, make_task
from jaxbp.cli import main

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def run(config, folder, *flags) -> int:
    return main(["train", str(config), "--run.folder", str(folder), *flags])


def summary(path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_linear_regression_ends_where_the_normal_equations_do(tmp_path, capsys):
    assert run(CONFIGS / "diabetes.toml", tmp_path) == 0
    path = tmp_path / "diabetes"
    data = make_task(read_config(path / "config.toml")).data
    design, test = (np.c_[a.astype(float), np.ones(len(a))] for a in (data.x, data.test_x))
    w = np.linalg.lstsq(design, data.y.astype(float), rcond=None)[0]
    params = load_file(path / "params.safetensors")
    np.testing.assert_allclose(params["0.w"], w[:-1], atol=1e-5 * np.abs(w).max())
    left = data.test_y - test @ w
    r2 = 1 - np.sum(left**2) / np.sum((data.test_y - data.test_y.mean()) ** 2)
    assert summary(path)["test_r2"] == pytest.approx(r2, abs=1e-5)
    assert f"held-out R² {r2:.4f}" in capsys.readouterr().out
    assert (path / "fit.png").stat().st_size > 1000
    assert not (path / "confusion.png").exists()
    assert main(["evaluate", str(path)]) == 0
    assert f"R² {r2:.4f}" in capsys.readouterr().out
    assert main(["runs", str(tmp_path)]) == 0
    assert f"{r2:.4f}" in capsys.readouterr().out

    from sklearn.datasets import load_diabetes

    raw = load_diabetes(return_X_y=True, scaled=False)[0]
    np.save(tmp_path / "new.npy", raw[:5])
    assert main(["predict", str(path), str(tmp_path / "new.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "row,y"
    got = [float(line.split(",")[1]) for line in lines[1:]]
    x = data.scale.apply(raw[:5].astype(np.float32))
    np.testing.assert_allclose(got, data.target_scale.undo(np.c_[x, np.ones(5)] @ w)[:, 0], rtol=1e-4)


def test_logistic_regression_has_one_logit(tmp_path, capsys):
    assert run(CONFIGS / "breast_cancer.toml", tmp_path) == 0
    path = tmp_path / "breast_cancer"
    params = load_file(path / "params.safetensors")
    assert params["0.w"].shape == (30, 1)
    data = make_task(read_config(path / "config.toml")).data
    logits = data.test_x @ params["0.w"] + params["0.b"]
    right = np.mean((logits > 0) == data.test_y)
    assert summary(path)["test_accuracy"] == pytest.approx(right)
    assert right >= 0.97
    assert main(["evaluate", str(path)]) == 0
    assert "malignant" in capsys.readouterr().out

    from sklearn.datasets import load_breast_cancer

    np.save(tmp_path / "new.npy", load_breast_cancer(return_X_y=True)[0][:3])
    assert main(["predict", str(path), str(tmp_path / "new.npy")]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[1] for row in rows] == ["malignant"] * 3
    assert all(float(row[2]) > 0.5 for row in rows)


def test_an_autoencoder_learns_its_inputs(tmp_path):
    assert run(CONFIGS / "digits_autoencoder.toml", tmp_path, "--train.epochs", "15") == 0
    path = tmp_path / "digits_autoencoder"
    assert summary(path)["test_r2"] > 0.4  # 15 of its 200 epochs
    assert (path / "images.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (
            "digits_autoencoder",
            ["--train.loss", "cross_entropy"],
            'train.loss: expected "squared_error", since the targets are its own inputs (data.name '
            '"digits", model.name "autoencoder"), got "cross_entropy"',
        ),
        (
            "diabetes",
            ["--train.loss", "sigmoid_cross_entropy"],
            'train.loss: expected "squared_error", since the targets are real numbers (data.name '
            '"diabetes", model.name "mlp"), got "sigmoid_cross_entropy"',
        ),
        (
            "diabetes",
            ["--train.shift", "1"],
            'train.shift and train.flip: expected data of images, got data.name "diabetes"',
        ),
        (
            "digits_autoencoder",
            ["--train.flip"],
            "train.shift and train.flip: an autoencoder's targets would not move along",
        ),
        (
            "diabetes",
            ["--train.devices", "99"],
            f"train.devices: expected at most the {jax.device_count()} there are, got 99",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path, config, flags, message, capsys):
    assert run(CONFIGS / f"{config}.toml", tmp_path, "--train.no-prove", *flags) == 2
    assert capsys.readouterr().err == f"jaxbp: error: {message}\n"
    assert not (tmp_path / config).exists()


def test_label_smoothing_is_that_of_the_loss(small):
    config = read_config(small)
    smooth = msgspec.structs.replace(config.train, label_smoothing=0.2)
    found = [make_task(c).loss for c in (config, msgspec.structs.replace(config, train=smooth))]
    assert found == [SoftmaxCrossEntropy(), SoftmaxCrossEntropy(label_smoothing=0.2)]


def test_r_squared_over_several_outputs_in_chunks(monkeypatch):
    from jaxbp.app import task

    net, rng = Dense(2), np.random.default_rng(0)
    x, y = (rng.normal(size=(7, size)).astype(np.float32) for size in (3, 2))
    y += np.float32([0, 9])
    p = net.init(jax.random.key(0), jnp.asarray(x))
    guess = x @ np.asarray(p["w"]) + np.asarray(p["b"])
    expected = 1 - np.sum((y - guess) ** 2) / np.sum((y - y.mean(axis=0)) ** 2)
    monkeypatch.setattr(task, "CHUNK", 3)
    score = make_score(net, SquaredError(), "values")
    value, r2, predicted = score(p, jnp.asarray(x), jnp.asarray(y))
    assert r2 == pytest.approx(expected, rel=1e-5)
    assert value == pytest.approx(np.sum((y - guess) ** 2) / 7, rel=1e-5)
    np.testing.assert_allclose(predicted, guess, rtol=1e-5, atol=1e-6)


def test_a_single_logit_decides_at_zero():
    net, x = Dense(1), jnp.asarray([[1.0], [-2.0], [0.5]], jnp.float32)
    p = {"w": jnp.asarray([[1.0]], jnp.float32), "b": jnp.zeros(1, jnp.float32)}
    y = jnp.asarray([[1.0], [0.0], [0.0]], jnp.float32)
    _, accuracy, predicted = make_score(net, SigmoidCrossEntropy())(p, x, y)
    assert (accuracy, predicted.tolist()) == (pytest.approx(2 / 3), [1, 0, 1])
    assert labels(y).tolist() == [1, 0, 0]
    np.testing.assert_allclose(
        probabilities(np.asarray([[0.0], [2.0]]))[:, 1], [0.5, 1 / (1 + np.exp(-2))]
    )


# --- images moved and mirrored ----------------------------------------------------------------------


def test_images_are_moved_and_mirrored_whole():
    x = jax.random.normal(jax.random.key(0), (40, 5, 4, 2), jnp.float32)
    made = np.asarray(change(jax.random.key(1), x, 2, True))
    seen = set()
    for image, got in zip(np.asarray(x), made, strict=True):
        wide = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        options = {
            (i, j, flip): wide[i : i + 5, j : j + 4][:, :: -1 if flip else 1]
            for i in range(5)
            for j in range(5)
            for flip in (False, True)
        }
        (found,) = [key for key, value in options.items() if np.array_equal(value, got)]
        seen.add(found)
    assert len(seen) > 20  # another way for nearly every image
    assert {flip for *_, flip in seen} == {False, True}
    np.testing.assert_array_equal(change(jax.random.key(1), x, 0, False), x)


def test_training_images_are_moved_and_held_out_ones_are_not(tmp_path):
    flags = ["--train.epochs", "1", "--train.no-prove"]
    assert run(CONFIGS / "digits_mlp.toml", tmp_path, *flags, "--run.name", "a") == 0
    assert (
        run(CONFIGS / "digits_mlp.toml", tmp_path, *flags, "--run.name", "b", "--train.shift", "1") == 0
    )
    a, b = (summary(tmp_path / name) for name in "ab")
    assert a["train_loss"] < b["train_loss"]  # harder to learn


# --- several devices ----------------------------------------------------------------------------------

SHARED_OUT = """
import jax, json, sys
import numpy as np
from jaxbp.cli import main
assert jax.device_count() == 4
flags = ["train", sys.argv[1], "--run.folder", sys.argv[2], "--train.epochs", "2", "--train.no-prove"]
for devices in ("1", "0"):
    assert main([*flags, "--run.name", "on" + devices, "--train.devices", devices]) == 0
assert main([*flags, "--run.name", "x", "--train.devices", "3"]) == 2
"""


def test_a_batch_shared_out_among_devices_gives_the_same_network(tmp_path):
    """BatchNorm included: its statistics are those of the whole batch."""
    config = tmp_path / "small.toml"
    config.write_text(
        '[data]\nname = "digits"\ntest_share = 0.9\n[model]\nname = "resnet"\nwidths = [4]\n'
        "[optimizer]\nlearning_rate = 0.05\n[train]\nbatch_size = 32\nsteps_per_call = 3\n"
    )
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-c", SHARED_OUT, str(config), str(tmp_path)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "cpu, 4 of 4 used" in done.stdout
    assert "expected a number that divides train.batch_size = 32, got 3" in done.stderr
    one, four = (load_file(tmp_path / name / "params.safetensors") for name in ("on1", "on0"))
    for name, value in one.items():
        np.testing.assert_allclose(
            four[name], value, atol=2e-5 * max(np.abs(value).max(), 1), err_msg=name
        )


# --- inside a long epoch ----------------------------------------------------------------------------


def in_parts(small, folder, *flags):
    return run(small, folder, "--train.batch-size", "5", "--train.steps-per-call", "3", *flags)


def test_an_epoch_in_several_calls_is_the_epoch_in_one(tmp_path, small):
    assert run(small, tmp_path, "--train.batch-size", "5", "--run.name", "one") == 0
    assert in_parts(small, tmp_path, "--run.name", "parts") == 0
    one, parts = (load_file(tmp_path / name / "params.safetensors") for name in ("one", "parts"))
    for name in one:
        np.testing.assert_allclose(parts[name], one[name], rtol=1e-4, atol=1e-6)
    losses = [summary(tmp_path / name)["train_loss"] for name in ("one", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_ctrl_c_inside_an_epoch_loses_one_call_and_resumes_to_the_same_bits(
    tmp_path, small, monkeypatch, capsys
):
    from jaxbp.app import loop

    assert in_parts(small, tmp_path, "--run.name", "whole") == 0
    calls, right = [0], loop.all_finite

    def interrupting(params):
        calls[0] += 1
        if calls[0] == 6:  # four calls an epoch: the second call of the second epoch
            raise KeyboardInterrupt
        return right(params)

    monkeypatch.setattr(loop, "all_finite", interrupting)
    assert in_parts(small, tmp_path, "--run.name", "cut") == 130
    monkeypatch.undo()
    out = capsys.readouterr().out
    assert "interrupted after 1 epochs and 3 steps; --resume goes on from there" in out
    found = summary(tmp_path / "cut")
    assert (found["epochs"], found["steps_of_the_next"]) == (1, 3)
    # named by its flags alone, a run goes on with its own config
    assert main(["train", "--run.folder", str(tmp_path), "--run.name", "cut", "--resume"]) == 0
    assert "resumed   after epoch 1 and step 3" in capsys.readouterr().out
    a, b = (load_file(tmp_path / name / "params.safetensors") for name in ("whole", "cut"))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_a_long_epoch_is_saved_by_the_clock_and_says_where_it_is(tmp_path, small, monkeypatch, capsys):
    from jaxbp.app.checkpoint import Checkpoints

    kept, right = [], Checkpoints.save

    def save(self, state):
        kept.append((state.epoch, state.step))
        right(self, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    assert in_parts(small, tmp_path, "--train.epochs", "1", "--train.checkpoint-minutes", "1e-9") == 0
    assert kept == [(0, 0), (0, 3), (0, 6), (0, 9), (1, 0)]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[:4] for line in lines[:3]] == [
        ["epoch", "1/1", "step", step] for step in ("3/10", "6/10", "9/10")
    ]
    assert "s left" in lines[0]


def test_the_program_of_a_call_holds_one_step(small):
    """However many steps an epoch has: compile time does not grow with the data."""
    from jaxbp.train.step import SGD, steps_function

    net = Chain(Dense(4), Tanh(), Dropout(0.2), Dense(3))
    x, y = jnp.zeros((40, 6), jnp.float32), jnp.zeros(40, jnp.int32)
    p = net.init(jax.random.key(0), x)
    call = steps_function(net, SoftmaxCrossEntropy(), SGD)

    def size(steps):
        rows = jnp.zeros((steps, 5), jnp.int32)
        keys = jax.random.split(jax.random.key(0), steps)
        return len(str(jax.make_jaxpr(call)(p, SGD.init(p), x, y, rows, keys)).splitlines())

    assert size(2) == size(8)


def test_a_proof_of_a_gradient_that_cancels(monkeypatch):
    """The bias of the first step on centred targets has a gradient of rounding only: no false alarm."""
    from jaxbp.app.loop import prove_gradient, start

    config = read_config(CONFIGS / "diabetes.toml")
    task = make_task(config)
    state, _ = start(config, task)
    assert prove_gradient(config, task, state.params)[1] < 1e-5
    right = Dense.gradient

    def no_bias(self, params, saved, delta):
        return {**right(self, params, saved, delta), "b": jnp.ones(1, jnp.float32)}

    monkeypatch.setattr(Dense, "gradient", no_bias)
    with pytest.raises(ValueError, match=r"the gradient by hand of 0\.b differs"):
        prove_gradient(config, task, state.params)


def test_every_config_builds(monkeypatch):
    """Those whose data is not given here are read all the same."""
    for path in sorted(CONFIGS.glob("*.toml")):
        config = read_config(path)
        if config.data.name in ("mnist", "cifar", "text", "file", "images"):
            continue
        assert make_task(msgspec.structs.replace(config)).steps > 0, path
