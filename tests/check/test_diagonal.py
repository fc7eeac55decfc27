"""The slip of the lecture notes, in the forms in which a softmax is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import check_gradients


def shifted(a):
    e = jnp.exp(a - jnp.max(a))
    return e / jnp.sum(e)


def by_rows(a):
    e = jnp.exp(a - jnp.max(a, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


def normalised(a):
    return a / jnp.sqrt(jnp.sum(a * a))


def only_the_diagonal(fn):
    def gradient(a, dy):
        jacobian = jax.jacobian(fn)(a).reshape(a.size, a.size)
        return (dy * jnp.diagonal(jacobian).reshape(a.shape),)

    return gradient


@pytest.mark.parametrize(
    ("fn", "shape", "line", "x64"),
    [
        (shifted, (3,), "jnp.sum(e)", False),
        (by_rows, (2, 3), "jnp.sum(e", True),
        (normalised, (4,), "jnp.sum(a * a)", False),
    ],
)
def test_the_other_outputs_are_missed(fn, shape, line: str, x64: bool) -> None:
    a = np.random.default_rng(3).standard_normal(shape).astype("float32")
    with jax.enable_x64(x64):
        report = check_gradients(fn, jnp.asarray(a), gradient=only_the_diagonal(fn))
    (finding,) = report.findings
    assert finding.cause == "missing-path"
    assert "the contributions of the other outputs are missing" in finding.detail
    assert line in finding.evidence["source"]
