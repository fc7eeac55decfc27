"""The worked example of the notes, to 1e-10, against the corrected numbers of the lecture notes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import worked_example
from jaxbp import SquaredError, make_step
from jaxbp.models import notes_network


@pytest.fixture(scope="module")
def values() -> dict:
    return worked_example.walk()


def test_the_forward_pass(values: dict) -> None:
    np.testing.assert_allclose(values["a1"], [2.9, 1.4, 2.1, 2.3], rtol=0, atol=1e-12)
    np.testing.assert_allclose(values["h1"], [0.947846, 0.802184, 0.890903, 0.908877], rtol=0, atol=5e-7)
    np.testing.assert_allclose(values["a2"], [1.657402, 0.447192], rtol=0, atol=5e-7)
    np.testing.assert_allclose(values["ŷ"], [0.770336, 0.229664], rtol=0, atol=5e-7)
    np.testing.assert_allclose(values["L"], 0.105491115823, rtol=0, atol=1e-12)


def test_w212_and_both_its_paths(values: dict) -> None:
    paths = worked_example.paths_w2(values, 1, 2)
    assert list(paths) == ["via ŷ1", "via ŷ2"]
    np.testing.assert_allclose(list(paths.values()), [-0.06518835309] * 2, rtol=0, atol=1e-10)
    np.testing.assert_allclose(values["dW2"][0, 1], -0.13037670618, rtol=0, atol=1e-10)
    np.testing.assert_allclose(values["dW2"][1, 1], 0.13037670618, rtol=0, atol=1e-10)


def test_w131_and_its_four_paths(values: dict) -> None:
    _, params, x, _ = notes_network()
    paths = worked_example.paths_w1(values, params, x, 3, 1)
    expected = {
        "a21→ŷ1": -0.00315935676,
        "a22→ŷ1": 0.00473903515,
        "a21→ŷ2": -0.00315935676,
        "a22→ŷ2": 0.00473903515,
    }
    assert paths.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(paths[name], value, rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(values["dW1"][2, 0], 0.00315935676, rtol=0, atol=1e-10)


def test_every_gradient_is_the_sum_of_its_paths(values: dict) -> None:
    _, params, x, _ = notes_network()
    for i in range(4):
        for j in range(4):
            total = sum(worked_example.paths_w1(values, params, x, i + 1, j + 1).values())
            np.testing.assert_allclose(total, values["dW1"][i, j], rtol=1e-12, atol=1e-17)


def test_one_step_of_sgd() -> None:
    net, params, x, y = notes_network()
    tx = optax.sgd(1.0)
    params, _, value = make_step(net, SquaredError("sum"), tx)(params, tx.init(params), x, y)
    np.testing.assert_allclose(params[2]["w"][1, 0], 0.93037670618, rtol=0, atol=1e-10)
    np.testing.assert_allclose(value, 0.105491115823, rtol=0, atol=1e-12)
    # slip 3: the bias moves against its gradient, δ21 = ∂L/∂w212 / h12, like the weights
    np.testing.assert_allclose(params[2]["b"][0], 0.13037670618 / 0.8021838885585818, rtol=0, atol=1e-10)


def test_cross_entropy() -> None:
    value, dw2 = worked_example.cross_entropy()
    row = np.array([-0.217686, -0.184233, -0.204608, -0.208736])
    np.testing.assert_allclose(value, 0.26092850985, rtol=0, atol=1e-10)
    np.testing.assert_allclose(dw2, [row, -row], rtol=0, atol=5e-7)


def test_the_table_stands_beside_the_notes(capsys: pytest.CaptureFixture) -> None:
    worked_example.main()
    shown = capsys.readouterr().out
    for number in ["0.105491115823", "-0.13037670618", "0.93037670618", "0.00315935676", "0.26092850985"]:
        assert number in shown
    for printed in ["-0.029, then -0.065", "0.865", "-6.4e-3", "0.0979"]:
        assert printed in shown
    assert "0.0972" in shown


def test_float32_by_default() -> None:
    with jax.enable_x64(False):
        _, params, _, _ = notes_network()
        assert params[0]["w"].dtype == jnp.float32
