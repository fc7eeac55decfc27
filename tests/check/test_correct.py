"""Right gradients raise no alarm: in every dtype, and where the numbers are bad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from experiments.gallery import correct

NARROW = ("dense", "layer norm", "softmax")
NAMES = [n for n in correct.cases() if " in " not in n or "float32" in n or n.startswith(NARROW)]


@pytest.mark.parametrize("name", NAMES)
def test_no_alarm(name):
    fn, args, hand = correct.cases()[name]
    report = jaxbp.check_gradients(fn, *args, gradient=hand)
    assert report.ok, str(report)


def test_integer_leaves_have_no_gradient():
    def fn(batch, w):
        return w[batch["tokens"]]

    def hand(batch, w, g):
        return None, jnp.zeros_like(w).at[batch["tokens"]].add(g)

    tokens = jnp.asarray([0, 2, 2])
    w = jnp.asarray(np.arange(6.0).reshape(3, 2) - 2.2, jnp.float32)
    report = jaxbp.check_gradients(fn, {"tokens": tokens}, w, gradient=hand)
    assert report.ok, str(report)
    float0 = {"tokens": np.zeros(3, jax.dtypes.float0)}
    assert jaxbp.check_gradients(
        fn, {"tokens": tokens}, w, gradient=lambda b, w, g: (float0, hand(b, w, g)[1])
    ).ok


def test_tie_is_reported_and_not_held_against_the_rule():
    x = jnp.asarray([0.0, 1.0, -1.0, 2.0], jnp.float32)
    report = jaxbp.check_gradients(jax.nn.relu, x, gradient=lambda x, g: jnp.where(x >= 0, g, 0))
    assert report.ok, str(report)
    assert any("kink" in note for note in report.notes)


def test_plain_function_is_said_to_have_no_rule():
    report = jaxbp.check_gradients(lambda x: jnp.sin(x), jnp.asarray([0.3, 0.4]))
    assert report.ok
    assert "no hand-written rule" in report.notes[0]
