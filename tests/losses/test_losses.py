"""Losses where it is delicate: extreme logits, ignored and wrong labels, known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import InputError, LinearCrossEntropy, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from tests.proof import normal

WHOLE = [jnp.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)]
EITHER = [(d, True) for d in WHOLE] + [
    (d, False) for d in WHOLE if d.itemsize > 2
]  # with 64 bits, without
INF, NAN = float("inf"), float("nan")


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


def run(loss, prediction, target):
    """Value and gradient with everything an argument of `jit`, so that nothing can be seen."""
    return jax.jit(both_traced, static_argnums=0)(loss, prediction, target)


def assert_same(got, expected, **tolerance):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, **tolerance), got, expected)


@pytest.mark.parametrize(("dtype", "x64"), EITHER, ids=str)
def test_labels_of_every_integer_dtype_mean_what_they_say(dtype, x64: bool) -> None:
    """256 classes: more than the narrow dtypes can count, as many as uint8 can."""
    top = min(255, int(jnp.iinfo(dtype).max))
    labels = np.array([0, top, 1, top // 2])
    with jax.enable_x64(x64):
        logits = normal(3, (4, 256), "float32")
        expected = both(SoftmaxCrossEntropy(), logits, jnp.asarray(labels, "int32"))
        given = labels.astype(dtype)
        assert_same(both(SoftmaxCrossEntropy(), logits, given), expected, rtol=0)
        assert_same(
            run(SoftmaxCrossEntropy(), logits, jnp.asarray(given)), expected, rtol=1e-5, atol=1e-9
        )


@pytest.mark.parametrize(("dtype", "x64"), EITHER, ids=str)
def test_ignore_is_a_number_whatever_dtype_the_labels_have(dtype, x64: bool) -> None:
    """Of a number that the dtype cannot hold there is none; it is not wrapped around."""
    low, high = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
    top = min(high, 299)
    labels = np.array([0, top, 1, 0])
    with jax.enable_x64(x64):
        logits, given = normal(3, (4, 300), "float32"), jnp.asarray(labels.astype(dtype))
        plain = both(SoftmaxCrossEntropy("sum"), logits, given)
        for absent in (low - 1, high + 1, -(2**70), 2**70):
            assert_same(both(SoftmaxCrossEntropy("sum", ignore=absent), logits, given), plain, rtol=0)
        value, gradient = run(SoftmaxCrossEntropy("sum", ignore=top), logits, given)
        kept = labels != top  # in int2 the third label is the largest, too
        by_mask = both(SoftmaxCrossEntropy("sum"), logits[kept], jnp.asarray(labels[kept]))
        np.testing.assert_allclose(value, by_mask[0], rtol=1e-6)
        np.testing.assert_allclose(gradient[kept], by_mask[1], rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(gradient[~kept], 0)


def test_a_label_is_not_cut_down_to_one_that_exists() -> None:
    """2³² + 1 and 2⁶³ + 1 would be 1 in int32, -1 in unsigned dtypes their largest number."""
    logits = normal(3, (2, 4), "float32")
    for x64 in (True, False):
        with jax.enable_x64(x64):
            for wrong in (np.array([2**32 + 1, 0]), np.array([2**63 + 1, 0], "uint64"), [2**32 + 1, 0]):
                with pytest.raises(InputError, match=rf"labels in 0 … 3, got {wrong[0]} \(1 of 2"):
                    SoftmaxCrossEntropy()(logits, wrong)
                with pytest.raises(
                    InputError, match="labels in 0 … 3"
                ):  # what can be seen is, in jit too
                    jax.jit(lambda a, y=wrong: SoftmaxCrossEntropy()(a, y))(logits)
            value, gradient = run(SoftmaxCrossEntropy(), logits, jnp.array([2**32 - 1, 1], "uint32"))
            assert np.isnan(value)
            np.testing.assert_array_equal(np.isnan(np.asarray(gradient)).all(axis=1), [True, False])


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(), SoftmaxCrossEntropy(ignore=1)])
def test_labels_from_lists_numbers_and_booleans(loss) -> None:
    logits = normal(3, (3, 2), "float32")
    expected = both(loss, logits, jnp.array([0, 1, 0]))
    truth = np.array([False, True, False])
    for target in ([0, 1, 0], (0, 1, 0), [jnp.array(0), jnp.array(1), 0], truth, jnp.asarray(truth)):
        assert_same(both(loss, logits, target), expected, rtol=0)
    value, gradient = both(loss, logits[2], 0)
    assert_same((value, gradient[None]), both(loss, logits[2:], [0]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [*WHOLE, "bool", "bfloat16", "float16", "float32", "float64"], ids=str)
def test_targets_of_every_dtype_are_the_same_numbers(dtype) -> None:
    prediction = normal(3, (4, 3), "float32")
    hot = np.eye(3)[[0, 2, 2, 1]]
    for loss in (SoftmaxCrossEntropy(label_smoothing=0.1), SigmoidCrossEntropy(), SquaredError()):
        expected = both(loss, prediction, hot)
        assert expected[1].dtype == np.float32
        for target in (hot.astype(dtype), jnp.asarray(hot.astype(dtype))):
            assert_same(both(loss, prediction, target), expected, rtol=0)
            assert_same(run(loss, prediction, target), expected, rtol=1e-5, atol=1e-7)
        assert_same(both(loss, prediction, hot.astype(dtype).tolist()), expected, rtol=0)
    pair = normal(4, (4, 5), "float32"), normal(5, (5, 3), "float32")
    by_hot, by_label = (both_of_pair(pair, target) for target in (hot.astype(dtype), [0, 2, 2, 1]))
    assert_same(by_hot, by_label, rtol=1e-5, atol=1e-6)


def both_of_pair(pair, target, loss=LinearCrossEntropy()):
    value, saved = loss.forward(pair, target)
    return value, *loss.backward(saved)


def test_integers_beyond_int32_are_targets_too() -> None:
    with jax.enable_x64(False):
        value, gradient = both(SquaredError(), jnp.zeros((1, 2)), np.array([[2**40, -(2**33)]]))
        np.testing.assert_allclose(value, 2.0**80 + 2.0**66, rtol=1e-6)
        np.testing.assert_array_equal(gradient, [[-(2.0**41), 2.0**34]])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gradient_is_rounded_once_and_at_its_end(dtype: str) -> None:
    """Of what is nearly sure a rounded probability would leave nothing, or a third too much."""
    eps = float(jnp.finfo(dtype).eps)
    logits = np.zeros((4, 10))
    logits[:, 0] = 5, 8, 9, 16
    for reduction, share in (("sum", 1), ("mean", 1 / 4)):
        _, gradient = both(SoftmaxCrossEntropy(reduction), jnp.asarray(logits, dtype), [0] * 4)
        others = share / (np.exp(logits[:, 0]) + 9)
        assert gradient.dtype == dtype
        assert_same(gradient[:, 0].astype(float), -9 * others, rtol=eps, atol=3e-8)
        assert_same(gradient[:, 1].astype(float), others, rtol=eps, atol=3e-8)
        soft = np.tile(np.r_[0.97, np.full(9, 0.03 / 9)], (4, 1))
        _, gradient = both(SoftmaxCrossEntropy(reduction), jnp.asarray(logits, dtype), soft)
        assert_same(gradient[:, 1].astype(float), others - share * 0.03 / 9, rtol=2 * eps)
    sure = jnp.array([[6.0, -6.0, 9.0]], dtype)
    value, gradient = both(SigmoidCrossEntropy(), sure, [[1, 0, 0]])
    exact = 1 / (1 + np.exp([6.0, 6.0, -9.0]))
    assert_same(gradient[0].astype(float), [-exact[0], exact[1], exact[2]], rtol=eps)
    assert_same(value, 2 * np.log1p(np.exp(-6)) + np.log1p(np.exp(9)), rtol=1e-6)
    guess = normal(1, (5, 3), dtype)
    far = np.asarray(normal(2, (5, 3), "float32"))
    _, gradient = both(SquaredError(), guess, far)
    exact = 2 / 5 * (np.asarray(guess, float) - far)
    np.testing.assert_allclose(gradient.astype(float), exact, rtol=eps / 2 * 1.01)  # one rounding


def test_a_sure_prediction_still_has_a_gradient_in_float32() -> None:
    """`ŷ - y` would be 1 - 1."""
    for loss, label in ((SoftmaxCrossEntropy(), 0), (SoftmaxCrossEntropy(ignore=7), 0)):
        value, gradient = both(loss, jnp.array([20.0, 0.0, 0.0], "float32"), label)
        small = np.exp(-20.0)
        assert_same((value, gradient), (2 * small, [-2 * small, small, small]), rtol=1e-5)
    value, gradient = both(SigmoidCrossEntropy(), jnp.array([20.0, -30.0], "float32"), [1, 0])
    assert_same((value, gradient), (np.exp(-20) + np.exp(-30), [-np.exp(-20), np.exp(-30)]), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(ignore=-1), SoftmaxCrossEntropy("sum", 0.1, -1)])
def test_an_ignored_prediction_may_hold_anything(loss, dtype: str) -> None:
    """Neither the value nor a gradient sees it, by hand and by autodiff."""
    logits, labels = normal(1, (6, 3), dtype), jnp.array([0, -1, 2, -1, -1, 1])
    expected = both(loss, logits, labels)
    spoiled = logits.at[1].set(NAN).at[3].set(jnp.array([INF, -INF, NAN], dtype)).at[4].set(-INF)
    assert_same(both(loss, spoiled, labels), expected, rtol=0)
    value, gradient = run(loss, spoiled, labels)
    assert_same(value, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[jnp.array([1, 3, 4])], 0)
    by_autodiff = jax.grad(lambda a: loss(a, labels))(spoiled)
    np.testing.assert_array_equal(by_autodiff[jnp.array([1, 3, 4])], 0)


def test_what_has_no_weight_in_a_soft_target_may_be_impossible() -> None:
    """`0 log 0 = 0`, and an impossible class has no gradient."""
    logits = jnp.array([[0.5, -INF, 1.5], [NAN, INF, -INF]])
    target = jnp.array([[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]])
    value, gradient = both(SoftmaxCrossEntropy("sum"), logits, target)
    p = 1 / (1 + np.exp(np.array([1.0, -1.0])))
    assert_same(value, -(0.25 * np.log(p[0]) + 0.75 * np.log(p[1])), rtol=1e-6)
    assert_same(gradient, [[p[0] - 0.25, 0, p[1] - 0.75], [0, 0, 0]], rtol=1e-6)


def test_an_infinite_logit() -> None:
    """The impossible that happens costs infinitely much; of +∞ - +∞ nothing can be said."""
    value, gradient = both(SoftmaxCrossEntropy(), jnp.array([[0.0, -INF, 0.0]]), [1])
    assert value == INF
    np.testing.assert_array_equal(gradient, [[0.5, -1, 0.5]])
    value, gradient = both(SoftmaxCrossEntropy("sum"), jnp.array([[0.0, INF], [0.0, 1.0]]), [1, 1])
    assert np.isnan(value)
    assert np.isfinite(gradient[1]).all()
    value, gradient = both(SigmoidCrossEntropy(), jnp.array([INF, -INF, INF]), [1, 0, 0])
    assert value == INF
    np.testing.assert_array_equal(gradient, [0, 0, 1])
    value, gradient = both(SigmoidCrossEntropy(), jnp.array([INF, -INF]), [1, 0])
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


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
        (SoftmaxCrossEntropy(), jnp.ones((4, 3)), [0.0, 1.0, 2.0, 0.0], r"got float64\[4\]"),
        (SoftmaxCrossEntropy(), jnp.ones(()), 0, r"got int64\[\]"),
        (SoftmaxCrossEntropy(), jnp.ones((4, 3)), ["a"] * 4, "a target of real numbers"),
        (SoftmaxCrossEntropy(), jnp.ones((4, 3)), None, "a target of real numbers"),
        (SquaredError(), jnp.ones((1, 2)), np.ones((1, 2), complex), "real numbers, got complex128"),
        (SquaredError(), jnp.ones((2, 2)), [[1, 2], [3]], "a target that is an array"),
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


@pytest.mark.usefixtures("unchecked")
def test_bad_ignore() -> None:
    with pytest.raises(InputError, match=r"ignore must be an integer, got -1.0"):
        SoftmaxCrossEntropy(ignore=-1.0)  # pyright: ignore[reportArgumentType]
    assert repr(SoftmaxCrossEntropy(ignore=np.int8(-1))) == "SoftmaxCrossEntropy(ignore=-1)"


@pytest.mark.parametrize("make", [SquaredError, SoftmaxCrossEntropy, SigmoidCrossEntropy])
def test_bad_reduction(make) -> None:
    with pytest.raises(InputError, match="reduction must be 'mean' or 'sum', got 'none'"):
        make("none")
    if make is SoftmaxCrossEntropy:
        with pytest.raises(InputError, match=r"label_smoothing must be in \[0, 1\), got 1.5"):
            make(label_smoothing=1.5)
