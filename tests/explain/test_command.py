"""`jaxbp explain`: what it prints, what it writes, and what it refuses."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import RNN, Chain, Dense, Embedding, InputError, SoftmaxCrossEntropy
from jaxbp.cli import main
from jaxbp.explain import trained
from jaxbp.explain.expression import parse

MALICIOUS = [
    "__import__('os').system('true')", "().__class__.__bases__[0]", "x.__class__",
    "open('/etc/passwd')",
    "[x for x in (1, 2)]", "lambda: x", "(lambda x: x)(1)", "x if x else 1", "x[0]", "f'{x}'",
    "'a' * 9",
    "exec('1')", "eval('1')", "globals()", "x := 1", "exp(x, out=x)", "exp(*[x])", "exp", "x; 1",
    "import os", "b'1'", "{x}", "{1: x}", "not x", "x < 1", "x and x", "x // 2", "x % 2", "x @ x", "~x",
    "x << 2", "1j * x", "True + x", "None", "...", "await x", "yield x", "exp(exp)", "sin.__call__(x)",
    "", " ", "1 +", "x" * 600, "(" * 60 + "x" + ")" * 60 + "+", "-" * 200 + "x", "1e400*x",
    "exp(" * 110 + "x" + ")" * 110,
    "exp(1, 2)", "max(x)", "x\0",
]  # fmt: skip


@pytest.mark.parametrize("expression", MALICIOUS)
def test_malicious_and_malformed_expressions_are_refused(expression):
    with pytest.raises(InputError, match=r"^--expr: "):
        parse(expression)


def test_nothing_of_a_refused_expression_is_run(tmp_path, capsys):
    made = tmp_path / "made"
    assert main(["explain", "--expr", f"open('{made}', 'w')", "--at", "x=1"]) == 2
    assert not made.exists()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("expression", "at", "derivative"),
    [
        ("exp(x**2)", "x=1", "5.436563656918091"),
        ("exp(exp(x**2))", "x=1", "82.38711134943229"),
        ("1/exp(x**2)", "x=1", "-0.7357588823428847"),
        ("1/exp(x^2)", "x=1", "-0.7357588823428847"),
        ("a*b + sin(pi*a)", "a=2,b=-1", "∂y/∂b"),
        ("9**9**9*x", "x=1", "inf"),
        ("relu(x)*max(x, 2) - tanh(-x)**0.5", "x=-0.3", "dy/dx"),
        ("e**x", "x=1", "y = e^{x}"),
        ("α + ŷ**2", "α=1,ŷ=3", "∂h1/∂ŷ = 2ŷ = 6"),
        ("+".join(["x"] * 90), "x=1", "= 90"),
        # at the edge of a domain, and beyond it
        ("sqrt(x)", "x=0", "jax.grad says inf, the same"),
        ("x**y", "x=-2,y=3", "jax.grad says 12, the same"),
        ("x**y", "x=0,y=3", "jax.grad says 0, the same"),
        ("x**0 + x", "x=0", "jax.grad says 1, the same"),
        ("1/x", "x=0", "jax.grad says -inf, the same"),
        ("asin(x)", "x=1", "jax.grad says inf, the same"),
        ("log(x)", "x=-1", "y is nan here"),
        ("abs(x) + max(x, 0)", "x=0", "a tie: shared equally"),
    ],
)
def test_expressions(expression, at, derivative, capsys):
    assert main(["explain", "--expr", expression, "--at", at]) == 0
    assert derivative in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--latex", "--json"])
def test_other_forms(form, capsys):
    assert main(["explain", "--expr", "exp(x**2)", "--at", "x=1", form]) == 0
    out = capsys.readouterr().out
    if form == "--json":
        assert json.loads(out)["derivatives"]["x"]["value"] == pytest.approx(5.43656365691809)
    else:
        assert r"\frac{dy}{dh_{1}} \frac{dh_{1}}{dx}" in out
    assert main(["explain", "--weight", "w131", form]) == 0
    out = capsys.readouterr().out
    if form == "--json":
        assert json.loads(out)["gradient"] == pytest.approx(0.00315935676, abs=5e-12)
    else:
        assert r"\frac{\partial L}{\partial w_{131}}" in out


def test_files_are_written(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("page.html", "paths.png")]
    assert main(["explain", "--weight", "w131", "--html", files[0], "--png", files[1]]) == 0
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert (tmp_path / "paths.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--expr", "x*y", "--at", "x=1"], "no value for y"),
        (["--expr", "x", "--at", "x=1", "--at", "z=2"], "no variable z"),
        (["--expr", "x", "--at", "x=one"], "expected NAME=NUMBER"),
        (["--expr", "x", "--at", "x=1,x=2"], "x is given twice"),
        (["--length", "3"], "expected together with"),
        (["--expr", "2", "--at", "x=1"], "expected a variable"),
        (["--at", "x=1"], "expected together with --expr"),
        (["--expr", "x", "--at", "x=1", "--weight", "w111"], "cannot be used with weight"),
        (["--weight", "w999"], "cannot read 'w999'"),
        (["--paths", "0"], "expected a positive number"),
        (["--example", "3"], "has one example"),
        (["--html", "/nowhere/at/all.html"], "does not exist"),
        (["--png", "/nowhere/at/all.png"], "does not exist"),
        (["no_such_config.toml"], "no_such_config.toml"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    assert main(["explain", *argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def sequences(shape=(6,)):
    """What a run of a language model is explained from, without having trained one."""
    net = Chain(Embedding(256, 2), RNN(2), Dense(3))
    random = np.random.default_rng(0)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), params)
    x, y = np.frombuffer(b"import", np.uint8).reshape(1, 6), np.zeros((1, *shape), np.int32)
    data = SimpleNamespace(test_x=x, test_y=y, x=x, y=y, held_out=True)
    return SimpleNamespace(data=data, net=net, loss=SoftmaxCrossEntropy()), params


def test_a_sequence_is_cut_to_a_length_that_can_be_read():
    task, params = sequences()
    explainer, what = trained._explainer(task, params, 0, 3)
    assert what == "held-out example 0, the first 3 of its 6 tokens: 'imp'"
    assert [b.name for b in explainer.graph.blocks] == ["x", "a1", "h2_1", "h2_2", "h2_3", "a3", "L"]
    e = explainer.weight("w_h_211", 2)
    assert e.total == pytest.approx(e.gradient, abs=1e-14)
    assert trained._explainer(task, params, 0, None)[1] == "held-out example 0"


@pytest.mark.parametrize(
    ("shape", "length", "message"),
    [((6,), 0, "expected 1 … 6"), ((6,), 7, "expected 1 … 6"), ((), 3, "sequences of tokens")],
)
def test_a_wrong_length_is_refused(shape, length, message):
    task, params = sequences(shape)
    with pytest.raises(InputError, match=f"--length: .*{message}"):
        trained._explainer(task, params, 0, length)


def test_a_config_is_trained_and_its_run_is_explained(tmp_path, capsys, monkeypatch):
    """The notes' network by config: after two epochs, the run's weights explain themselves."""
    config = "configs/notes_network.toml"
    folder = tmp_path / "runs"
    flags = ["--train.epochs", "2", "--optimizer.learning-rate", "0.3"]
    assert main(["train", config, *flags, "--run.folder", str(folder)]) == 0
    (run,) = [p.parent for p in folder.rglob("params.safetensors")]
    capsys.readouterr()
    page, asked = tmp_path / "page.html", []
    monkeypatch.setattr("jaxbp.app.run.use_cache", lambda: asked.append("cache"))
    assert main(["explain", str(run), "--weight", "w131", "--html", str(page)]) == 0
    out, said = capsys.readouterr()
    assert asked == ["cache"]
    assert "4 paths lead from w131 to L" in out
    # the run's own η, in the text as on the page
    assert re.search(r"One step: w131 := \S+ - 0\.3 ·", out)
    assert re.search(r'"rate": 0\.3[,}]', page.read_text("utf-8"))
    assert "moment 31 of 31" in said
    assert "moment" not in out
    assert main(["explain", str(run), "--example", "7"]) == 2
    assert "--example: expected 0 … 0" in capsys.readouterr().err


def test_a_config_says_how_far_its_training_is(tmp_path, capsys):
    text = Path("configs/notes_network.toml").read_text("utf-8")
    config = tmp_path / "short.toml"
    config.write_text(re.sub(r"(?m)^epochs = \d+", "epochs = 3", text), "utf-8")
    assert main(["explain", str(config), "--weight", "w131"]) == 0
    out, said = capsys.readouterr()
    assert "training short …" in said
    assert re.search(r"^epoch 3 of 3, loss \d", said, re.M)
    assert "epoch" not in out
