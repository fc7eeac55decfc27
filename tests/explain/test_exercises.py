"""The ladder: every exercise can be solved, wrong answers are told apart, bad files get a word."""

import json

import jax
import jax.numpy as jnp
import pytest

from jaxbp.cli import main
from jaxbp.explain.exercises import forwards
from jaxbp.explain.exercises.command import attempt
from jaxbp.explain.exercises.judge import judge
from jaxbp.explain.exercises.ladder import LADDER
from jaxbp.explain.exercises.worker import load


def softmax_back(p, dp):
    return p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))


def two_layer(x, w1, b1, w2, b2, dy):
    h = jax.nn.sigmoid(x @ w1 + b1[None, :])
    delta = (dy @ w2.T) * h * (1 - h)
    return delta @ w1.T, x.T @ delta, delta.sum(0), h.T @ dy, dy.sum(0)


def layer_norm(x, scale, offset, dy):
    mean = x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
    n, dn = (x - mean) * r, dy * scale[None, :]
    dx = r * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))
    return dx, (dy * n).sum(0), dy.sum(0)


def convolution(x, w, dy):
    steps, dx = dy.shape[0], jnp.zeros_like(x)
    for k in range(w.shape[0]):
        dx = dx.at[k : k + steps].add(dy @ w[k].T)
    return dx, jnp.stack([x[k : k + steps].T @ dy for k in range(w.shape[0])])


def attention(q, k, v, dy):
    root = jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
    p = jax.nn.softmax(q @ k.T / root, axis=-1)
    ds = softmax_back(p, dy @ v.T) / root
    return ds @ k, ds.T @ q, p.T @ dy


def bptt(x, w_x, w_h, b, dy):
    h = forwards.recurrence(x, w_x, w_h, b)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    carried, deltas = jnp.zeros_like(b), []
    for t in reversed(range(x.shape[0])):
        deltas.append((dy[t] + carried) * (1 - h[t] ** 2))
        carried = w_h @ deltas[-1]
    d = jnp.stack(deltas[::-1])
    return d @ w_x.T, x.T @ d, before.T @ d, d.sum(0)


def training_step(w1, b1, w2, b2, x, y, rate):
    h = jax.nn.sigmoid(x @ w1 + b1)
    p = jax.nn.softmax(h @ w2 + b2)
    d2 = softmax_back(p, -2 * (y - p))
    d1 = (w2 @ d2) * h * (1 - h)
    return (
        w1 - rate * x[:, None] * d1[None, :],
        b1 - rate * d1,
        w2 - rate * h[:, None] * d2[None, :],
        b2 - rate * d2,
    )


SOLUTIONS = {
    "chain": lambda x, dy: dy * jnp.exp(x**2) * 2 * x,
    "tower": lambda x, dy: dy * jnp.exp(jnp.exp(x**2)) * jnp.exp(x**2) * 2 * x,
    "reciprocal": lambda x, dy: -dy / jnp.exp(x**2) ** 2 * jnp.exp(x**2) * 2 * x,
    "sigmoid": lambda a, dy: dy * jax.nn.sigmoid(a) * (1 - jax.nn.sigmoid(a)),
    "softmax": lambda a, dy: softmax_back(jax.nn.softmax(a), dy),
    "cross-entropy": lambda a, y, dy: dy * (jax.nn.softmax(a) - y),
    "dense": lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.sum(0)),
    "two-layer": two_layer,
    "layer-norm": layer_norm,
    "convolution": convolution,
    "attention": attention,
    "bptt": bptt,
    "training-step": training_step,
}


def test_there_are_at_least_ten_and_all_have_solutions():
    assert set(SOLUTIONS) == set(LADDER)
    assert len(LADDER) >= 10
    assert all(len(e.hints) >= 2 for e in LADDER.values())


@pytest.mark.parametrize("name", LADDER)
def test_a_right_solution_passes_and_each_wrong_result_is_named(name):
    exercise, solution = LADDER[name], SOLUTIONS[name]
    assert judge(exercise, solution) is None
    for k, asked in enumerate(exercise.asked):

        def broken(*arguments, k=k):
            results = solution(*arguments)
            results = list(results) if isinstance(results, tuple) else [results]
            results[k] = results[k] * 1.01 + 0.001
            return tuple(results)

        wrong = judge(exercise, broken)
        assert wrong is not None
        assert wrong.startswith(asked if exercise.function == "step" else f"d{asked}")


@pytest.mark.parametrize("name", LADDER)
def test_the_starter_can_be_run_and_answers_that_it_is_empty(name, tmp_path):
    file = tmp_path / "exercise.py"
    file.write_text(LADDER[name].starter(), "utf-8")
    module = load(file)
    assert "returns nothing yet" in judge(LADDER[name], getattr(module, LADDER[name].function))
    assert callable(getattr(module, LADDER[name].forward.__name__))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy), "db has shape [5, 4], expected [4]"),
        (lambda x, w, b, dy: (-dy @ w.T, x.T @ dy, dy.sum(0)), "dx is -1 times what it should be"),
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy / 5, dy.sum(0)), "dw is 0.2 times what it should be"),
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy), "expected 3 results, dx, dw, db, got 2"),
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy, jnp.zeros(4)), "db is zero everywhere"),
        (lambda x, w, b, dy: (dy @ w.T, jnp.nan * w, dy.sum(0)), "dw is not finite"),
        (lambda x, w, b, dy: (dy @ w.T, "dw", dy.sum(0)), "dw should be an array"),
        (lambda x, w, b, dy: None, "returns nothing yet"),
    ],
)
def test_what_is_wrong_is_said(written, message):
    assert message in judge(LADDER["dense"], written)


def test_the_slip_of_the_notes_is_not_let_through():
    def diagonal_only(a, dy):
        p = jax.nn.softmax(a)
        return dy * p * (1 - p)

    assert judge(LADDER["softmax"], diagonal_only).startswith("da")


BAD_FILES = {
    "raises": ("def backward(a, dy):\n    raise KeyError('oops')\n", "line 2", "KeyError: 'oops'"),
    "loops for ever": (
        "def backward(a, dy):\n    while True:\n        pass\n",
        "",
        "did not finish within",
    ),
    "syntax": ("def backward(a, dy:\n    return a\n", "line 1", "SyntaxError"),
    "exits": ("import sys\nsys.exit(0)\n", "", "stopped the program"),
    "dies": ("import os\nos._exit(3)\n", "", "ended without an answer (exit code 3)"),
    "other name": ("def back(a, dy):\n    return a\n", "", "no function called backward"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_a_clear_word(name, tmp_path):
    source, where, message = BAD_FILES[name]
    file = tmp_path / "sigmoid.py"
    file.write_text(source, "utf-8")
    found = attempt(LADDER["sigmoid"], file, 6 if name == "loops for ever" else 120)
    assert found["where"] == where
    assert message in found["wrong"]


def test_a_missing_file_gets_a_clear_word(tmp_path):
    assert "there is no file" in attempt(LADDER["sigmoid"], tmp_path / "sigmoid.py", 5)["wrong"]


def test_the_command_from_start_to_done(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert main(["exercises", "start", "sigmoid", str(folder)]) == 0
    file = folder / "sigmoid.py"
    source = file.read_text("utf-8")
    file.write_text(source.replace("return ...", "return dy"), "utf-8")
    capsys.readouterr()
    hints = []
    for _ in range(2):
        assert main(["exercises", "check", str(folder)]) == 1
        hints.append(capsys.readouterr().out.split("hint: ")[1])
    assert [h.strip() for h in hints] == list(LADDER["sigmoid"].hints[:2])
    right = "h = sigmoid(a)\n    print('hello')\n    return dy * h * (1 - h)"
    file.write_text(source.replace("return ...", right), "utf-8")
    assert main(["exercises", "check", str(folder)]) == 0
    assert "sigmoid: right" in capsys.readouterr().out
    assert json.loads((folder / "progress.json").read_text())["sigmoid"] == {"done": True, "tries": 2}
    assert main(["exercises", "list", str(folder)]) == 0
    assert "sigmoid        done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["start", "sigmoidal", "x"], "no exercise 'sigmoidal'"),
        (["check", "nowhere"], "no such folder"),
        (["check", "."], "no exercise in it"),
        (["check", ".", "--limit", "0"], "expected a positive number of seconds"),
        (["dance"], "invalid choice"),
        ([], "required"),
    ],
)
def test_bad_input(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["exercises", *argv]) == 2
    assert message in capsys.readouterr().err


def test_what_is_there_is_never_overwritten(tmp_path, capsys):
    assert main(["exercises", "start", "chain", str(tmp_path)]) == 0
    (tmp_path / "chain.py").write_text("mine")
    assert main(["exercises", "start", "chain", str(tmp_path)]) == 2
    assert (tmp_path / "chain.py").read_text() == "mine"
    (tmp_path / "progress.json").write_text("[broken")
    assert main(["exercises", "list", str(tmp_path)]) == 2
    assert "not a progress file" in capsys.readouterr().err
