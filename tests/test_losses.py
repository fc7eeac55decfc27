"""Losses where it is delicate: extreme logits, ignored and wrong labels, known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import InputError, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from tests.proof import normal


def both(loss, prediction, target):
    value, saved = loss.forward(prediction, target)
    return np.asarray(value), np.asarray(loss.backward(saved))


def test_squared_error_is_a_plain_sum() -> None:
    prediction, target = jnp.array([[1.0, 2.0], [0.0, -1.0]]), jnp.array([[0.0, 4.0], [0.5, 0.0]])
    value, gradient = both(SquaredError("sum"), prediction, target)
    assert value == 1 + 4 + 0.25 + 1
    np.testing.assert_array_equal(gradient, [[2, -4], [-1, -2]])
    value, gradient = both(SquaredError("mean"), prediction, target)
    assert value == 6.25 / 2
    np.testing.assert_array_equal(gradient, [[1, -2], [-0.5, -1]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_cross_entropy_of_huge_logits(dtype: str) -> None:
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype)
    value, gradient = both(SoftmaxCrossEntropy("sum"), logits, jnp.array([1, 0]))
    np.testing.assert_allclose(value, 2e4 + 2e4 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1, -1, 0], [-1, 0.5, 0.5]], atol=1e-7)
    value, gradient = both(SoftmaxCrossEntropy("sum"), logits[:1], jnp.array([0]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_cross_entropy_of_huge_logits(dtype: str) -> None:
    logits = jnp.array([[1e4, -1e4, 1e4, -1e4]], dtype)
    value, gradient = both(SigmoidCrossEntropy("sum"), logits, jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(value, 2e4, rtol=1e-7)
    np.testing.assert_array_equal(gradient, [[0, 0, 1, -1]])


def test_masked_logits_of_minus_infinity() -> None:
    logits = jnp.array([[0.5, -jnp.inf, 1.5]])
    value, gradient = both(SoftmaxCrossEntropy(), logits, jnp.array([2]))
    assert np.isfinite(value)
    np.testing.assert_allclose(np.sum(gradient), 0, atol=1e-7)
    assert gradient[0, 1] == 0


def test_ignored_labels_have_no_loss_no_gradient_and_no_share_in_the_mean() -> None:
    logits = normal(1, (5, 3), "float64")
    labels = jnp.array([0, -100, 2, -100, 1])
    value, gradient = both(SoftmaxCrossEntropy(ignore=-100), logits, labels)
    kept = jnp.array([0, 2, 4])
    expected, expected_gradient = both(SoftmaxCrossEntropy(), logits[kept], labels[kept])
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(gradient[kept], expected_gradient, rtol=1e-14)
    np.testing.assert_array_equal(gradient[jnp.array([1, 3])], 0)


def test_nothing_but_ignored_labels_is_zero_not_nan() -> None:
    value, gradient = both(SoftmaxCrossEntropy(ignore=7), normal(1, (2, 3), "float64"), jnp.array([7, 7]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_labels_one_hot_and_integers_agree() -> None:
    logits, labels = normal(1, (5, 3), "float64"), jnp.array([0, 2, 2, 1, 0])
    for loss in (SoftmaxCrossEntropy(), SoftmaxCrossEntropy("sum", label_smoothing=0.2)):
        by_label, by_hot = (
            both(loss, logits, t) for t in (labels, jax.nn.one_hot(labels, 3, dtype="int32"))
        )
        np.testing.assert_allclose(by_label[0], by_hot[0], rtol=1e-14)
        np.testing.assert_allclose(by_label[1], by_hot[1], rtol=1e-13, atol=1e-16)


def test_label_smoothing_by_its_definition() -> None:
    logits, labels, s = normal(1, (5, 3), "float64"), jnp.array([0, 2, 2, 1, 0]), 0.3
    target = (1 - s) * np.eye(3)[np.asarray(labels)] + s / 3
    smoothed = both(SoftmaxCrossEntropy(label_smoothing=s), logits, labels)
    plain = both(SoftmaxCrossEntropy(), logits, jnp.asarray(target))
    np.testing.assert_allclose(smoothed[0], plain[0], rtol=1e-14)
    np.testing.assert_allclose(smoothed[1], plain[1], rtol=1e-13, atol=1e-16)


def test_values_against_torch() -> None:
    torch = pytest.importorskip("torch")
    logits, labels = normal(1, (5, 3), "float64"), np.array([0, 2, -100, 1, 0])
    a = torch.tensor(np.asarray(logits), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(a, torch.tensor(labels), label_smoothing=0.0)
    loss.backward()
    value, gradient = both(SoftmaxCrossEntropy(ignore=-100), logits, jnp.asarray(labels))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-13)
    np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=1e-12, atol=1e-16)
    bits = np.random.default_rng(0).uniform(size=(5, 3))
    a = torch.tensor(np.asarray(logits), requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(a, torch.tensor(bits), reduction="sum")
    loss.backward()
    value, gradient = both(SigmoidCrossEntropy("sum"), logits, jnp.asarray(bits))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-13)
    np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=1e-12, atol=1e-16)


def test_wrong_labels_are_an_error_outside_jit_and_nan_inside() -> None:
    logits, labels = normal(1, (4, 3), "float64"), jnp.array([0, 3, -1, 1])
    with pytest.raises(InputError, match=r"expected labels in 0 … 2, got 3 \(2 of 4 are out of range\)"):
        SoftmaxCrossEntropy()(logits, labels)
    value, gradient = jax.jit(lambda a: both_traced(SoftmaxCrossEntropy(), a, labels))(logits)
    assert np.isnan(value)
    np.testing.assert_array_equal(np.isnan(np.asarray(gradient)).all(axis=1), [False, True, True, False])


def both_traced(loss, prediction, target):
    value, saved = loss.forward(prediction, jax.lax.optimization_barrier(target))
    return value, loss.backward(saved)


@pytest.mark.parametrize(
    ("loss", "prediction", "target", "message"),
    [
        (
            SquaredError(),
            jnp.ones((4, 3)),
            jnp.ones((4,)),
            r"expected a target of the prediction's shape \[4, 3\]",
        ),
        (SquaredError(), jnp.ones((4, 3), int), jnp.ones((4, 3)), "expected an array of floating dtype"),
        (
            SoftmaxCrossEntropy(),
            jnp.ones((4, 3)),
            jnp.ones(5, int),
            r"integer labels of shape \[4\] .* got int64\[5\]",
        ),
        (SoftmaxCrossEntropy(), jnp.ones((4, 3)), jnp.ones((4, 2)), r"a distribution of shape \[4, 3\]"),
        (SoftmaxCrossEntropy(), jnp.ones((4, 3)), jnp.ones(4), r"got float64\[4\]"),
        (
            SigmoidCrossEntropy(),
            jnp.ones((4, 1)),
            2 * jnp.ones((4, 1)),
            r"expected targets in \[0, 1\], got 2.0",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(loss, prediction, target, message) -> None:
    with pytest.raises(InputError, match=message):
        loss(prediction, target)


@pytest.mark.parametrize("make", [SquaredError, SoftmaxCrossEntropy, SigmoidCrossEntropy])
def test_bad_reduction(make) -> None:
    with pytest.raises(InputError, match="reduction must be 'mean' or 'sum', got 'none'"):
        make("none")
    if make is SoftmaxCrossEntropy:
        with pytest.raises(InputError, match=r"label_smoothing must be in \[0, 1\), got 1.5"):
            make(label_smoothing=1.5)
