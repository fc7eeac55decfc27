"""The ladder: every exercise can be solved, wrong answers are told apart, bad files get a word."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp.cli import main
from jaxbp.explain.exercises import command, forwards
from jaxbp.explain.exercises.attempt import attempt
from jaxbp.explain.exercises.judge import judge
from jaxbp.explain.exercises.ladder import LADDER
from jaxbp.explain.exercises.worker import load, work


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
def test_a_right_solution_passes(name):
    found = judge(LADDER[name], SOLUTIONS[name])
    assert (found.wrong, found.note) == (None, "")


@pytest.mark.parametrize("name", LADDER)
def test_the_starter_can_be_run_and_answers_that_it_is_empty(name, tmp_path):
    file = tmp_path / "exercise.py"
    file.write_text(LADDER[name].starter(), "utf-8")
    module = load(file)
    found = judge(LADDER[name], getattr(module, LADDER[name].function))
    assert "returns nothing yet" in found.wrong
    assert found.hints == ()  # no try was made, so none is due
    assert callable(getattr(module, LADDER[name].forward.__name__))
    for argument, shape in LADDER[name].shapes.items():
        assert not shape or f"{argument}: {list(shape)}" in module.__dict__[LADDER[name].function].__doc__


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy), "db has shape [5, 4], expected [4]"),
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy), "expected 3 results, dx, dw, db, got 2"),
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy, ...), "db is missing yet"),
        (lambda x, w, b, dy: (dy @ w.T, jnp.nan * w, dy.sum(0)), "dw is not finite"),
        (lambda x, w, b, dy: (dy @ w.T, "dw", dy.sum(0)), "dw should be an array"),
        (lambda x, w, b, dy: None, "returns nothing yet"),
    ],
)
def test_results_of_the_wrong_form(written, message):
    assert message in judge(LADDER["dense"], written).wrong


def bias_along_the_gradient(w1, b1, w2, b2, x, y, rate):
    new_w1, new_b1, new_w2, new_b2 = training_step(w1, b1, w2, b2, x, y, rate)
    return new_w1, 2 * b1 - new_b1, new_w2, 2 * b2 - new_b2


def no_way_through_time(x, w_x, w_h, b, dy):
    h = forwards.recurrence(x, w_x, w_h, b)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    d = dy * (1 - h**2)
    return d @ w_x.T, x.T @ d, before.T @ d, d.sum(0)


# What is written, what is said to be wrong, a word of the gentle hint, and of the one after it.
MISTAKES = {
    "the slip of the notes": (
        "softmax",
        lambda a, dy: (lambda p: dy * p * (1 - p))(jax.nn.softmax(a)),
        "da is not right",
        "paths from this argument",
        "da: the contributions of the other outputs are missing",
    ),
    "a mean for a sum": (
        "dense",
        lambda x, w, b, dy: (dy @ w.T, x.T @ dy / 5, dy.sum(0)),
        "dw is not right",
        "Its pattern is right",
        "dw is 0.2 times what it should be",
    ),
    "one row for a sum": (
        "dense",
        lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy[0]),
        "db is not right",
        "used at several places",
        "the sum over it is missing",
    ),
    "biases the wrong way": (
        "training-step",
        bias_along_the_gradient,
        "the step of b1 and the step of b2 are not right",
        "and at the sign",
        "the step of b1 and the step of b2 have the wrong sign",
    ),
    "no way through time": (
        "bptt",
        no_way_through_time,
        "are not right",
        "paths from this argument",
        "at `h @ w_h` in `h = jnp.tanh(x_t @ w_x + h @ w_h + b)` is missing",
    ),
    "a factor left out": (
        "tower",
        lambda x, dy: dy * jnp.exp(jnp.exp(x**2)) * 2 * x,
        "dx is not right",
        "with 3 factors besides dy",
        "the factor ∂h2/∂h1 is missing.",
    ),
    "dy forgotten": (
        "sigmoid",
        lambda a, dy: jax.nn.sigmoid(a) * (1 - jax.nn.sigmoid(a)),
        "da is not right",
        "proportional to dy",
        "does not change",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_gently_first(name):
    exercise, written, wrong, gentle, then = MISTAKES[name]
    found = judge(LADDER[exercise], written)
    assert wrong in found.wrong
    assert gentle in found.hints[0]
    assert then in found.hints[1]
    assert found.hints[2:] == LADDER[exercise].hints
    assert "forwards.py" not in " ".join(found.hints)


def test_numpy_is_let_through_with_a_word():
    def by_numpy(a, dy):
        h = 1 / (1 + np.exp(-np.asarray(a)))
        return np.asarray(dy) * h * (1 - h)

    found = judge(LADDER["sigmoid"], by_numpy)
    assert found.wrong is None
    assert "jax.jit" in found.note


BAD_FILES = {
    "raises": ("def backward(a, dy):\n    raise KeyError('oops')\n", "line 2", "KeyError: 'oops'"),
    "syntax": ("def backward(a, dy:\n    return a\n", "line 1", "SyntaxError"),
    "exits": ("import sys\nsys.exit(0)\n", "", "stopped the program"),
    "other name": ("def back(a, dy):\n    return a\n", "", "no function called backward"),
    "wrong arguments": ("def backward(a):\n    return a\n", "", "TypeError: backward() takes 1"),
    "autodiff": (
        "import jax\ndef backward(a, dy):\n    return jax.vjp(jax.nn.sigmoid, a)[1](dy)[0]\n",
        "",
        "jax.vjp made them: write it by hand",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_a_clear_word(name, tmp_path):
    source, where, message = BAD_FILES[name]
    file = tmp_path / "sigmoid.py"
    file.write_text(source, "utf-8")
    found = work("sigmoid", file)
    assert found["where"] == where
    assert message in found["wrong"]


@pytest.mark.parametrize(
    ("source", "limit", "message"),
    [
        ("def backward(a, dy):\n    while True:\n        pass\n", 4, "did not finish within 4 seconds"),
        ("import os\nos._exit(3)\n", 120, "ended without an answer (exit code 3)"),
    ],
)
def test_a_file_cannot_take_the_checker_along(source, limit, message, tmp_path):
    file = tmp_path / "sigmoid.py"
    file.write_text(source, "utf-8")
    assert message in attempt(LADDER["sigmoid"], file, limit)["wrong"]


def test_a_missing_file_gets_a_clear_word(tmp_path):
    assert "there is no file" in attempt(LADDER["sigmoid"], tmp_path / "sigmoid.py", 5)["wrong"]


def test_the_command_from_start_to_done(tmp_path, capsys, monkeypatch):
    """Wrong tries are judged in this process, which is quicker; the last one as a learner's is."""
    folder = tmp_path / "mine"
    assert main(["exercises", "start", "sigmoid", str(folder)]) == 0
    file = folder / "sigmoid.py"
    source = file.read_text("utf-8")

    def check(answer, code):
        file.write_text(source.replace("return ...", answer), "utf-8")
        assert main(["exercises", "check", str(folder)]) == code
        return " ".join(capsys.readouterr().out.split())

    with monkeypatch.context() as here:
        here.setattr(command, "attempt", lambda exercise, file, limit: work(exercise.name, file))
        assert "returns nothing yet" in check("return ...", 1)
        hints = [check("return sigmoid(a) * (1 - sigmoid(a))", 1).split("hint: ")[1] for _ in range(3)]
        assert len(set(hints)) == 3
        assert hints[2] == LADDER["sigmoid"].hints[0]
        other = check("return -dy * sigmoid(a) * (1 - sigmoid(a))", 1).split("hint: ")[1]
        assert "at the sign" in other  # another mistake begins with a gentle hint again
    right = "h = sigmoid(a)\n    print('hello')\n    return dy * h * (1 - h)"
    assert "sigmoid: right Next: jaxbp exercises start chain" in check(right, 0)
    assert "sigmoid: right (as before)" in check(right, 0)
    kept = json.loads((folder / "progress.json").read_text())["sigmoid"]
    assert (kept["done"], kept["tries"]) == (True, 4)
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
