"""Linear + cross-entropy in chunks: what it never holds, and that chunks and padding change nothing."""

import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import Head, InputError, LinearCrossEntropy, SoftmaxCrossEntropy
from jaxbp.losses import linear
from tests.proof import normal

INF, NAN = float("inf"), float("nan")
ROWS, FEATURES, CLASSES, CHUNK = 96, 8, 500, 16


def both(loss, pair, target):
    value, saved = loss.forward(pair, target)
    return value, *loss.backward(saved)


def assert_same(got, expected, **tolerance):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, **tolerance), got, expected)


def problem(dtype="float32", rows=ROWS, classes=CLASSES):
    h, table = normal(1, (rows, FEATURES), dtype), normal(2, (classes, FEATURES), "float32")
    return {"w": table}, h, jnp.asarray(np.random.default_rng(3).integers(0, classes, rows), "int32")


def lowered(what, loss=LinearCrossEntropy(chunk=CHUNK)):
    head = Head(CLASSES, deferred=True)

    def gradient(p, h, y):
        pair, saved = head.forward(p, h)
        value, kept = loss.forward(pair, y)
        return value, head.backward(p, saved, loss.backward(kept))

    steps = {"value": lambda p, h, y: loss.forward(head(p, h), y)[0], "gradient": gradient}
    return jax.jit(steps[what]).lower(*problem())


def compiled(what, loss=LinearCrossEntropy(chunk=CHUNK)):
    return lowered(what, loss).compile()


def test_the_logits_of_all_rows_are_never_there() -> None:
    text = compiled("gradient").as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[(\d+(?:,\d+)*)\]", text)}
    assert (CHUNK, CLASSES) in shapes
    assert max(map(prod, shapes)) < ROWS * CLASSES / 2


def test_memory_beside_the_result() -> None:
    """The logits of a chunk with their softmax, and what it adds to the weight's gradient."""
    temp = compiled("gradient").memory_analysis().temp_size_in_bytes
    assert temp < 4 * (2.5 * CHUNK * CLASSES + 1.5 * FEATURES * CLASSES + 3 * ROWS * FEATURES)
    assert temp < compiled("gradient", LinearCrossEntropy()).memory_analysis().temp_size_in_bytes / 2


def test_three_products_and_one_where_only_the_value_is_wanted() -> None:
    assert lowered("gradient").as_text().count("dot_general") == 3
    assert len(re.findall(r" dot\(", compiled("value").as_text())) == 1


def test_no_wide_copy_of_a_narrow_weight() -> None:
    params, h, y = problem("bfloat16")
    h, w = Head(CLASSES, deferred=True, precision="bfloat16")(params, h)
    assert w.dtype == jnp.bfloat16
    program = str(jax.make_jaxpr(lambda h, w: both(LinearCrossEntropy(chunk=CHUNK), (h, w), y))(h, w))
    made = re.findall(r"f32\[(\d+),(\d+)\] = convert_element_type", program)
    assert f"bf16[{CLASSES},{FEATURES}]" in program
    assert all(prod(map(int, shape)) < CLASSES * FEATURES for shape in made)


@pytest.mark.parametrize("chunk", [None, 4, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", ["labels", "soft"])
def test_padded_classes_never_count(monkeypatch, target: str, smoothing: float, chunk) -> None:
    """5 classes as 8: the products have three columns more, a softmax has not."""
    _, h, labels = problem("float64", rows=11, classes=5)
    w = normal(4, (FEATURES, 5), "float64")
    y = labels if target == "labels" else jax.nn.softmax(normal(5, (11, 5), "float64"))
    loss = LinearCrossEntropy(label_smoothing=smoothing, chunk=chunk)
    value, (dh, dw) = value_and_gradient_of_logits(h, w, y, smoothing)
    monkeypatch.setitem(linear.PLANS, "cpu", linear.Plan(1 << 20, 4))
    assert_same(both(loss, (h, w), y), (value, dh, dw), rtol=1e-12, atol=1e-14)
    program = str(jax.make_jaxpr(lambda h, w: both(loss, (h, w), y))(h, w))
    assert re.search(r"f64\[\d+,8\] = dot_general", program)
    assert re.search(r"f64\[\d+,5\] = exp", program)
    assert not re.search(r"f64\[\d+,8\] = (exp|reduce_max|sub|div)", program)


def value_and_gradient_of_logits(h, w, y, smoothing):
    loss = SoftmaxCrossEntropy(label_smoothing=smoothing)
    value, saved = loss.forward(h @ w, y)
    delta = loss.backward(saved)
    return value, (delta @ w.T, h.T @ delta)


@pytest.mark.parametrize("rows", [1, 16, 17, 97, 96, 8191])
def test_a_platform_s_plan_covers_all_rows_in_chunks_that_fit(monkeypatch, rows: int) -> None:
    monkeypatch.setitem(linear.PLANS, "cpu", linear.Plan(40_000, 1))  # 20 rows of 500 logits
    size, count = LinearCrossEntropy()._sizes(rows, 4 * CLASSES)
    assert size <= 20
    assert rows <= size * count < rows + count


@pytest.mark.parametrize("rows", [96, 97])
@pytest.mark.parametrize("target", ["labels", "soft"])
def test_the_plan_s_chunks_and_none_agree(monkeypatch, rows: int, target: str) -> None:
    """97 is a prime: the last chunks are filled up."""
    params, h, y = problem("float64", rows)
    pair = h, params["w"].T.astype("float64")
    y = y if target == "labels" else jax.nn.softmax(normal(5, (rows, CLASSES), "float64"))
    whole = both(LinearCrossEntropy(chunk=rows), pair, y)
    monkeypatch.setitem(linear.PLANS, "cpu", linear.Plan(40_000, 1))
    assert "scan" in str(jax.make_jaxpr(lambda h: both(LinearCrossEntropy(), (h, pair[1]), y))(h))
    assert_same(both(LinearCrossEntropy(), pair, y), whole, rtol=1e-11, atol=1e-15)


def test_a_mean_over_many_does_not_underflow_in_float16() -> None:
    """The mean's 1/N comes after the products: before, `δ/N` would be below what float16 can hold."""
    rows = 4000
    h, w = normal(1, (rows, 5), "float16"), normal(2, (5, 40), "float16")
    y = jnp.asarray(np.random.default_rng(3).integers(0, 40, rows), "int32")
    exact = both(LinearCrossEntropy(), (h.astype("float64"), w.astype("float64")), y)
    dw = both(LinearCrossEntropy(chunk=128), (h, w), y)[2]
    assert np.max(np.abs(dw.astype(float) - exact[2])) <= 2**-11 * np.max(np.abs(exact[2]))


def test_an_empty_batch() -> None:
    pair = jnp.zeros((0, 3)), normal(2, (3, 4), "float64")
    for chunk in (None, 2):
        value, dh, dw = both(LinearCrossEntropy(chunk=chunk), pair, jnp.zeros(0, "int32"))
        assert value == 0
        assert dh.shape == (0, 3)
        np.testing.assert_array_equal(dw, np.zeros((3, 4)))


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("target", ["labels", "soft"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_deferred_head_hands_on_where_the_label_is_ignored(dtype: str, target: str, chunk) -> None:
    h, w = normal(1, (2, 3, 5), dtype), normal(2, (5, 4), dtype)
    labels = jnp.array([[0, -1, 3], [-1, -1, 2]])
    if target == "soft":  # a target of nothing but zeros counts in the mean, and that is all
        labels = jax.nn.one_hot(labels, 4)
    loss = LinearCrossEntropy(ignore=-1, chunk=chunk)
    spoiled = h.at[0, 1].set(NAN).at[1, 0].set(INF).at[1, 1, 2].set(-INF)
    value, dh, dw = both(loss, (spoiled, w), labels)
    assert np.isfinite(np.asarray(value))
    assert_same((value, dh, dw), both(loss, (h, w), labels), rtol=0)
    np.testing.assert_array_equal(dh[jnp.array([0, 1, 1]), jnp.array([1, 0, 1])], 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearCrossEntropy(chunk=0), "chunk must be a positive integer, got 0"),
        (
            lambda: LinearCrossEntropy()((jnp.ones((2, 3)), jnp.ones((3, 4), "float32")), [0, 1]),
            r"of one dtype, got float64\[2, 3\] and float32\[3, 4\]",
        ),
    ],
)
def test_bad_input(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()
