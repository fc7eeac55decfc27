"""Every number of the notes' worked example, and all of its paths."""

import re

import jax
import numpy as np
import pytest

from jaxbp import Chain, Dense, Sigmoid, Softmax, SquaredError, explain_weight
from jaxbp.cli import main
from jaxbp.explain.notes import notes_explainer
from jaxbp.oracle import reference_value_and_grad

# Copied from the notes' page, so that a wrong number in the library cannot hide here.
W1 = [[0.1, 0.3, 0.8, -0.4], [-0.3, -0.2, 0.5, 0.5], [-0.3, 0.0, 0.5, 0.4], [0.2, 0.5, -0.9, 0.7]]
W2 = [[0.5, 0.8, 0.2, 0.4], [0.5, 0.2, 0.3, -0.5]]
NUMBERS = [
    "2.9",
    "1.4",
    "2.1",
    "2.3",
    "0.947846",
    "0.802184",
    "0.890903",
    "0.908877",
    "1.657402",
    "0.447192",
    "0.770336",
    "0.229664",
    "0.105491115823",
    "-0.13037670618",
    "-0.06518835309",
    "0.93037670618",
    "0.00315935676",
    "-0.00315935676",
    "0.00473903515",
    "0.13037670618",
    "0.26092850985",
    "-0.217686",
    "-0.184233",
    "-0.204608",
    "-0.208736",
    "0.217686",
    "0.184233",
    "0.204608",
    "0.208736",
    "-0.029",
    "-0.065",
    "0.865",
    "-6.4e-3",
    "0.0972",
    "0.0979",
    "0.95, 0.80, 0.89, 0.91",
    "1.66, 0.45",
    "0.77, 0.23",
    "2, 5, 3, 3",
    "y = 1, 0, all biases 0, η = 1",
    *[" ".join(f"{v:>5.1f}" for v in row).strip() for row in (*W1, *W2)],
]


@pytest.fixture(scope="module")
def explainer():
    return notes_explainer()


@pytest.fixture(scope="module")
def printed():
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["explain"]) == 0
    return out.getvalue()


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_of_the_notes_is_printed(printed, number):
    assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", printed)


def test_w212_and_its_two_paths(explainer):
    e = explainer.weight("w212")
    assert [p.nodes for p in e.paths] == [("a21", "ŷ1", "L"), ("a21", "ŷ2", "L")]
    assert [p.contribution for p in e.paths] == pytest.approx([-0.06518835309] * 2, abs=5e-12)
    assert (e.count, e.remainder) == (2, 0.0)
    assert e.gradient == pytest.approx(-0.13037670618, abs=5e-12)
    assert e.stepped == pytest.approx(0.93037670618, abs=5e-12)
    assert e.loss == pytest.approx(0.105491115823, abs=5e-13)
    assert [str(f) for f in e.paths[0].formulas] == ["h12", "ŷ1(1 - ŷ1)", "-2(y1 - ŷ1)"]
    assert [str(f) for f in e.paths[1].formulas] == ["h12", "-ŷ1 ŷ2", "-2(y2 - ŷ2)"]
    assert e.error[0] == "δ21"
    assert e.error[1] * e.meets[1] == pytest.approx(e.gradient, abs=1e-15)


def test_w131_and_its_four_paths(explainer):
    found = {p.nodes[2:4]: p.contribution for p in explainer.weight("w131").paths}
    assert found == {
        ("a21", "ŷ1"): pytest.approx(-0.00315935676, abs=5e-12),
        ("a22", "ŷ1"): pytest.approx(0.00473903515, abs=6e-12),
        ("a21", "ŷ2"): pytest.approx(-0.00315935676, abs=5e-12),
        ("a22", "ŷ2"): pytest.approx(0.00473903515, abs=6e-12),
    }


def test_all_paths_of_all_weights_and_biases_sum_to_the_gradient(explainer):
    net, loss = explainer.net, explainer.loss
    _, grads = reference_value_and_grad(net, loss)(explainer.params, explainer.x, explainer.y)
    names = explainer.names()
    assert len(names) == 30
    for name in names:
        e = explainer.weight(name, k=100, formulas=False)
        layer, place = (0 if name[1] == "1" else 2), tuple(int(c) - 1 for c in reversed(name[2:]))
        expected = float(grads[layer][name[0]][place])
        assert e.count == len(e.paths) == (4 if layer == 0 else 2)
        assert sum(p.contribution for p in e.paths) == pytest.approx(expected, abs=1e-12)
        assert e.gradient == pytest.approx(expected, abs=1e-12)


def test_the_function_of_the_package_takes_lists_and_one_example():
    net = Chain(Dense(4), Sigmoid(), Dense(2), Softmax())
    params = ({"w": np.array(W1).T, "b": np.zeros(4)}, (), {"w": np.array(W2).T, "b": np.zeros(2)}, ())
    e = explain_weight(net, params, [2.0, 5.0, 3.0, 3.0], [1.0, 0.0], SquaredError(), weight="w212")
    assert e.gradient == pytest.approx(-0.13037670618, abs=5e-12)
    assert e.path == "[2]['w'][1, 0]"
    batched = explain_weight(net, params, [[2.0, 5.0, 3.0, 3.0]], [[1.0, 0.0]], SquaredError(), "w212")
    assert batched.paths == e.paths


def test_text_latex_and_dict_tell_the_same(explainer):
    e = explainer.weight("w131", reference=True)
    text, latex, plain = e.text(), e.latex(), e.to_dict()
    for p in e.paths:
        assert " → ".join(("w131", *p.nodes)) in text
    assert r"\frac{\partial L}{\partial w_{131}}" in latex
    assert r"h_{13} \cdot \left(1 - h_{13}\right)" in latex
    assert latex.count("&=") == 4
    assert sum(p["contribution"] for p in plain["paths"]) == pytest.approx(plain["gradient"], abs=1e-15)
    assert plain["reference"] == pytest.approx(plain["total"], abs=1e-15)


def test_what_going_backwards_saves(explainer):
    """Brute force: products of `n` factors take `n - 1` multiplications; an edge takes one."""
    e = explainer.weight("w131", k=10)
    assert e.savings.one_by_one == sum(len(p.factors) - 1 for p in e.paths) == 16
    assert e.savings.one_pass == 1 + 4 + 8 + 4 + 2


def test_a_picture_is_written(explainer, tmp_path):
    explainer.weight("w131").png(tmp_path / "paths.png")
    assert (tmp_path / "paths.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_float32_parameters_are_explained_in_float64(explainer):
    params = jax.tree.map(lambda a: a.astype("float32"), explainer.params)
    x, y = np.asarray(explainer.x[0], "float32"), np.asarray(explainer.y[0], "float32")
    e = explain_weight(explainer.net, params, x, y, SquaredError(), "w212")
    assert e.gradient == pytest.approx(-0.13037670618, rel=1e-6)
    assert e.total == pytest.approx(e.gradient, abs=1e-15)
