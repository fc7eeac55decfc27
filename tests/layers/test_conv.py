"""What the harness does not see of convolution and pooling: shapes, ties, dtypes, bad input."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxbp import (
    AvgPool,
    Chain,
    Conv,
    ConvTranspose,
    Dense,
    Eval,
    Flatten,
    InputError,
    MaxPool,
    Precision,
    SoftmaxCrossEntropy,
    make_epoch,
)
from jaxbp.layers.correlation import _by_taps, _kernel_whole, _spread_phases, _spread_whole
from jaxbp.layers.windows import window
from jaxbp.oracle import relative_error
from tests.interpreter import interpret
from tests.proof import by_hand, like, normal


def shape(layer, x):
    params = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct(x, "float32"))
    return jax.eval_shape(layer, params, jax.ShapeDtypeStruct(x, "float32")).shape


@pytest.mark.parametrize(
    ("layer", "x", "y"),
    [
        (Conv(5, (3,)), (2, 9, 4), (2, 9, 5)),
        (Conv(5, 3, stride=2), (2, 9, 8, 4), (2, 5, 4, 5)),
        (Conv(5, (3, 1, 2), padding="VALID"), (7, 4, 6, 4), (5, 4, 5, 5)),
        (ConvTranspose(5, (3,), stride=2), (2, 9, 4), (2, 18, 5)),
        (ConvTranspose(5, (3,), stride=2, padding="VALID"), (2, 9, 4), (2, 19, 5)),
        (ConvTranspose(5, (2,), stride=3, padding="VALID"), (2, 9, 4), (2, 27, 5)),
        (ConvTranspose(5, (3,), stride=2, padding=((1, 0),)), (2, 9, 4), (2, 18, 5)),
        (MaxPool(2), (2, 9, 8, 4), (2, 4, 4, 4)),
        (MaxPool(3, 2, "SAME"), (2, 9, 8, 4), (2, 5, 4, 4)),
        (AvgPool((2,), 1), (9, 4), (8, 4)),
    ],
    ids=str,
)
def test_output_shapes(layer, x, y) -> None:
    assert shape(layer, x) == y


@given(
    size=st.integers(1, 9),
    taps=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 4),
    padding=st.sampled_from(["SAME", "VALID", ((0, 2),), ((3, 1),), ((4, 4),), ((-1, 2),)]),
)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_windows_look_where_the_relation_says(size, taps, stride, dilation, padding) -> None:
    """`looks` and `unlook` against the relation i = s o + d k - p itself, and as transposes."""
    try:
        win = window((size,), (taps,), (stride,), (dilation,), padding, "here")
    except InputError:
        return
    (p, _), (count,) = win.padding[0], win.count
    at = stride * np.arange(count) - p + dilation * np.arange(taps)[:, None]
    x = np.arange(1.0, size + 1)
    looks = win.looks(win.padded(jnp.asarray(x.reshape(1, size, 1))))
    expected = np.where((at >= 0) & (at < size), x[np.clip(at, 0, size - 1)], 0)
    got = np.stack([np.asarray(look)[0, :, 0] for look in looks])
    np.testing.assert_array_equal(got, expected)


@given(
    size=st.integers(1, 8),
    taps=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    groups=st.sampled_from([1, 2]),
)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_convolutions_of_any_geometry(size, taps, stride, dilation, before, after, groups) -> None:
    """Both passes in float64 against sums written out one by one in NumPy: no autodiff at all."""
    hyper = {"stride": stride, "dilation": dilation, "padding": ((before, after),), "groups": groups}
    layer = Conv(4, (taps,), **hyper, bias=False)
    x = normal(1, (2, size, 2), "float64")
    try:
        w = normal(2, layer.init(jax.random.key(0), x)["w"].shape, "float64")
    except InputError:
        assert size + before + after < dilation * (taps - 1) + 1
        return
    count = (size + before + after - dilation * (taps - 1) - 1) // stride + 1
    dy = normal(3, (2, count, 4), "float64")
    args = {"w": w}, x, dy, Eval()
    y, dparams, dx = interpret(partial(by_hand, layer), *args)(*args)
    expected = np.zeros((2, count, 4)), np.zeros(w.shape), np.zeros(x.shape)
    for o in range(count):
        for k in range(taps):
            i = stride * o + dilation * k - before
            if 0 <= i < size:
                for g in range(groups):
                    c, f = slice(2 * g // groups, 2 * (g + 1) // groups), slice(4 * g // groups, None)
                    f = slice(f.start, 4 * (g + 1) // groups)
                    expected[0][:, o, f] += x[:, i, c] @ w[k, :, f]
                    expected[1][k, :, f] += x[:, i, c].T @ dy[:, o, f]
                    expected[2][:, i, c] += dy[:, o, f] @ w[k, :, f].T
    for got, reference in zip((y, dparams["w"], dx), expected, strict=True):
        assert relative_error(got, reference) < 1e-13


@pytest.mark.parametrize(
    "padding", [((-3, 2), (-1, -1)), ((0, -2), (-3, 1)), ((-1, -2), (-1, 1))], ids=str
)
def test_a_padding_that_crops(padding) -> None:
    """As of the cropped image; XLA's convolution alone is wrong here on CPU in JAX 0.10."""
    x, layer = normal(1, (2, 13, 12, 3), "float32"), Conv(4, 3, padding=padding)
    params = like(2, layer.init(jax.random.key(0), x))
    config = [(0, 0, 0), *((before, after, 0) for before, after in padding), (0, 0, 0)]
    whole = Conv(4, 3, padding="VALID")(params, lax.pad(x, jnp.float32(0), config))
    np.testing.assert_allclose(layer(params, x), whole, rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_is_the_transpose() -> None:
    """⟨conv(x), y⟩ = ⟨x, convᵀ(y)⟩ with the same kernel, channels exchanged."""
    down = Conv(3, (4,), stride=3, padding=((1, 2),), bias=False)
    up = ConvTranspose(2, (4,), stride=3, padding=((1, 2),), bias=False)
    x, y, w = (
        normal(1, (2, 10, 2), "float64"),
        normal(2, (2, 4, 3), "float64"),
        normal(3, (4, 2, 3), "float64"),
    )
    left = jnp.vdot(down({"w": w}, x), y)
    right = jnp.vdot(x, up({"w": jnp.swapaxes(w, 1, 2)}, y))
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_per_example_gradients_are_a_vmap_of_gradient() -> None:
    for layer in (Conv(4, (3,), stride=2, groups=2), ConvTranspose(4, (3,), stride=2, groups=2)):
        x = normal(1, (3, 5, 2), "float64")
        params = like(2, layer.init(jax.random.key(0), x))
        y, saved = layer.forward(params, x)
        _, delta = layer.pull(params, saved, normal(3, y.shape, "float64"))
        each = jax.vmap(layer.gradient, (None, 0, 0))(params, saved, delta)
        for i in range(3):
            one = jax.tree.map(lambda s, i=i: s[i : i + 1], (saved, delta))
            alone = layer.gradient(params, *one)
            jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12), each, alone)


# The order of axes for which XLA's CPU backend has a fast program, without what it has none for.
FAST = re.compile(r"dim_labels=b01f_01io->b01f(?!.*(_group_count|lhs_dilate|rhs_reversal))")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what is fast is another thing elsewhere")
def test_every_convolution_of_an_epoch_is_one_that_the_cpu_has_a_fast_program_for() -> None:
    """Any other is a plain nest of loops inside a `scan`: with one of them lenet's epoch took 15 times as
    long, and a single step outside of a scan, which XLA rewrites, showed nothing."""
    convolutions = (
        Conv(4, 3),
        Conv(4, 3, groups=2, dilation=2),
        Conv(4, 2, groups=4),
        ConvTranspose(6, 2, stride=2),
    )
    net, tx = Chain(*convolutions, Flatten(), Dense(3)), optax.sgd(0.1)
    x, y = normal(1, (6, 6, 7, 2), "float32"), jnp.arange(6) % 3
    params = net.init(jax.random.key(0), x)
    epoch = make_epoch(net, SoftmaxCrossEntropy(), tx, batch_size=2, shuffle=False)
    lowered = epoch.lower(params, tx.init(params), x, y, jax.random.key(0))
    program = lowered.compile({"xla_backend_optimization_level": 0}).as_text()  # of the machine's code
    found = [line.strip() for line in program.splitlines() if " convolution(" in line]
    assert " while(" in program
    assert len(found) >= 2 * len(convolutions) - 2  # a depthwise one is none
    assert [line for line in found if not FAST.search(line)] == []


def test_mixed_precision_keeps_parameters_and_gradients_wide() -> None:
    layer = Conv(4, (3,), precision=Precision("float32", "bfloat16", "bfloat16"))
    x = normal(1, (2, 5, 3), "float32")
    params = layer.init(jax.random.key(0), x)
    y, saved = layer.forward(params, x)
    grads, dx = layer.backward(params, saved, y)
    assert y.dtype == saved[0].dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves((params, grads, dx))} == {jnp.dtype("float32")}
    exact = Conv(4, (3,))(params, x)
    assert 0 < relative_error(y, exact) < 2e-2


# --- pooling ----------------------------------------------------------------------------------------


def test_ties_go_to_the_first_as_autodiff_of_reduce_window_decides() -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 6, 6, 2)), "float64")

    def reduce(v):
        return lax.reduce_window(v, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    y, vjp = jax.vjp(reduce, x)
    dy = normal(1, y.shape, "float64")
    got, _, dx = by_hand(MaxPool(3, 2, "SAME"), (), x, dy, Eval())
    np.testing.assert_array_equal(got, y)
    np.testing.assert_allclose(dx, vjp(dy)[0], rtol=1e-14, atol=0)


def test_of_equal_entries_one_gets_the_whole_error() -> None:
    dx = by_hand(MaxPool((3,)), (), jnp.ones((1, 3, 1)), jnp.full((1, 1, 1), 7.0), Eval())[2]
    np.testing.assert_array_equal(dx[0, :, 0], [7.0, 0.0, 0.0])


def test_padding_never_wins_and_nan_always_does() -> None:
    low = jnp.full((1, 3, 1), -5.0)
    np.testing.assert_array_equal(MaxPool((2,), 1, 1)((), low), np.full((1, 4, 1), -5.0))
    y = MaxPool((3,))((), low.at[0, 1].set(jnp.nan))
    assert np.isnan(y).all()


def test_padding_is_not_an_entry_of_a_mean_unless_asked() -> None:
    ones = jnp.ones((1, 4, 4, 1))
    np.testing.assert_array_equal(AvgPool(3, 1, "SAME")((), ones), ones)
    with_padding = AvgPool(3, 1, "SAME", count_include_pad=True)((), ones)
    np.testing.assert_allclose(with_padding[0, 0, 0, 0], 4 / 9)


def test_max_pool_keeps_one_byte_an_output() -> None:
    _, (won, _) = MaxPool(2).forward((), normal(1, (2, 4, 4, 3), "float32"))
    assert won.dtype == jnp.uint8
    assert won.shape == (2, 2, 2, 3)


# --- bad input --------------------------------------------------------------------------------------


KEY = jax.random.key(0)
SEQUENCE = jax.ShapeDtypeStruct((2, 9, 4), "float32")
IMAGE = jax.ShapeDtypeStruct((2, 5, 5, 4), "float32")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Conv(0, 3), "features must be a positive integer"),
        (lambda: Conv(4, ()), "1 to 3 sizes"),
        (lambda: Conv(4, (3, 3, 3, 3)), "1 to 3 sizes"),
        (lambda: Conv(4, (3, 0)), "kernel: expected an integer of at least 1"),
        (lambda: Conv(4, 3, stride=(1, 2, 3)), "stride"),
        (lambda: Conv(4, 3, dilation=0), "dilation"),
        (lambda: Conv(4, 3, padding="same"), "padding must be"),
        (lambda: Conv(4, 3, padding=((1, 1),)), "2 pairs"),
        (lambda: Conv(4, 3, groups=3), "divisible by groups"),
        (lambda: Conv(6, 3, groups=3).init(KEY, IMAGE), "divisible by groups=3, got 4"),
        (lambda: Conv(4, 3).init(KEY, SEQUENCE.update(shape=(9, 4))), "position, position, channels"),
        (lambda: Conv(4, 6, padding="VALID").init(KEY, IMAGE), "does not fit"),
        (lambda: Conv(4, 3).init(KEY, IMAGE.update(dtype="int32")), "floating dtype"),
        (lambda: ConvTranspose(4, 3, padding=9).init(KEY, IMAGE), "cropping"),
        (lambda: MaxPool(6).init(KEY, IMAGE), "does not fit"),
        (lambda: MaxPool(2, padding=2), "smaller than the window"),
        (lambda: AvgPool(2, 0), "stride"),
        (lambda: MaxPool(2).init(KEY, SEQUENCE.update(shape=(9, 4))), "position, position, channels"),
    ],
)
def test_bad_input_is_one_line(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_a_wrong_channel_count_names_its_place() -> None:
    net = Chain(Conv(4, 3), Conv(2, 3))
    x = normal(1, (1, 4, 4, 3), "float32")
    params = net.init(jax.random.key(0), x)
    with pytest.raises(InputError, match=r"Chain\[0\] > .*expected 3 channels.*got 2"):
        net(params, x[..., :2])


def test_layers_show_themselves_as_they_are_made() -> None:
    assert repr(Conv(4, (3, 1), stride=(2, 1))) == "Conv(4, (3, 1), stride=(2, 1))"
    assert repr(MaxPool(2)) == "MaxPool(2)"
    assert hash(Conv(4, 3, padding=[[1, 1], [0, 0]])) == hash(Conv(4, 3, padding=((1, 1), (0, 0))))


WHOLE = [
    (Conv(8, 3), (3, 7, 6, 4)),
    (Conv(8, 3, stride=2, groups=2), (3, 7, 6, 4)),
    (Conv(8, (2, 3), stride=(3, 1), dilation=(1, 2), padding=2), (3, 8, 6, 4)),
    (Conv(4, 3, groups=4), (3, 7, 6, 4)),
    (Conv(6, (3,), stride=2, padding="VALID"), (3, 9, 2)),
    (Conv(6, (2, 1, 3), stride=2), (2, 4, 3, 5, 2)),
    (Conv(5, 1, stride=2), (3, 6, 5, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), WHOLE, ids=str)
def test_what_accelerators_run_is_the_same_sum(layer, shape) -> None:
    """There each error is one convolution, which is not what this machine would choose."""
    x = normal(1, shape, "float64")
    params = layer.init(jax.random.key(0), x)
    win = layer._window(x)
    dy = normal(2, jax.eval_shape(layer, params, x).shape, "float64")
    pairs = [
        (_spread_whole, _spread_phases, (dy, params["w"])),
        (_kernel_whole, _by_taps, (x, dy)),
    ]
    for whole, here, arrays in pairs:
        got, expected = whole(*arrays, win, layer.groups), here(*arrays, win, layer.groups)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(("layer", "shape"), WHOLE, ids=str)
def test_an_accelerator_gets_the_three_convolutions_of_autodiff(layer, shape) -> None:
    x = normal(1, shape, "float32")
    params = layer.init(jax.random.key(0), x)
    dy = normal(2, jax.eval_shape(layer, params, x).shape, "float32")

    def hand(p, x, dy):
        y, saved = layer.forward(p, x)
        return y, layer.backward(p, saved, dy)

    def autodiff(p, x, dy):
        y, vjp = jax.vjp(lambda p, x: layer.forward(p, x)[0], p, x)
        return y, vjp(dy)

    def convolutions(fn):
        text = jax.jit(fn).trace(params, x, dy).lower(lowering_platforms=("cuda",)).as_text()
        # the window, the groups and the result; how a small kernel's axes are called does not matter
        return sorted(re.findall(r"stablehlo\.convolution\([^)]*\).*(window = .*) : .*-> (.*)", text))

    ours = convolutions(hand)
    assert len(ours) == 3
    assert ours == convolutions(autodiff)
