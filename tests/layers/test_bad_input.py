"""What people get wrong that fits no family: types, parameters of another network, modes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp
from jaxbp import (
    ELU,
    LSTM,
    Add,
    Attention,
    BatchNorm,
    Branch,
    Chain,
    Concat,
    Conv,
    Dense,
    Dropout,
    Embedding,
    GroupNorm,
    Head,
    InputError,
    LastStep,
    Layer,
    LayerNorm,
    LinearCrossEntropy,
    MaxPool,
    PositionEmbedding,
    Precision,
    ReLU,
    SoftmaxCrossEntropy,
    SquaredError,
    Stack,
    Train,
    make_epoch,
    make_step,
    value_and_grad,
)
from jaxbp.models import char_lstm, resnet
from jaxbp.models.generate import make_generator
from jaxbp.train.batches import Batches

KEY = jax.random.key(0)
X = jnp.ones((2, 3, 4), "float32")
IDS = jnp.ones((2, 3), int)
BOTH = LSTM(2, return_state=True), LSTM(2, reverse=True, return_state=True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(2.0), "heads must be a positive integer, got 2.0"),
        (lambda: Attention(2, window=1.5), "window must be a positive integer, got 1.5"),
        (lambda: Attention(True), "heads must be a positive integer, got True"),
        (lambda: LSTM(True), "LSTM: features must be a positive integer, got True"),
        (lambda: LSTM(2, unroll=1.5), "LSTM: unroll must be a positive integer, got 1.5"),
        (lambda: LinearCrossEntropy(chunk=True), "chunk must be a positive integer, got True"),
        (lambda: char_lstm(depth=1.5), "char_lstm: depth must be a positive integer, got 1.5"),
        (lambda: resnet(blocks=True), "resnet: blocks must be a positive integer, got True"),
        (lambda: make_generator(LSTM(2), 5, top=True), "top must be a positive integer, got True"),
        (lambda: Batches(5, 2.5), "size must be a positive integer, got 2.5"),
        (lambda: Attention(2, dropout="half"), r"dropout must be in \[0, 1\), got 'half'"),
        (lambda: Conv(4, 3.0), "1 to 3 sizes, got 3.0"),
        (lambda: Conv(4, 3, stride=2.0), "stride: expected an integer"),
        (lambda: MaxPool(2.0), "a window of one size, or one an axis, got 2.0"),
        (lambda: Dropout("half"), r"rate must be in \[0, 1\), got 'half'"),
        (lambda: LayerNorm("small"), "epsilon must be positive, got 'small'"),
        (lambda: BatchNorm("slow"), r"momentum must be in \[0, 1\], got 'slow'"),
        (lambda: ELU("one"), "alpha must be positive, got 'one'"),
        (lambda: Precision("float33"), "params must be a floating dtype, got 'float33'"),
        (lambda: Precision(compute="int32"), "compute must be a floating dtype, got 'int32'"),
        (lambda: Dense(3, precision="float33"), "Dense: precision must be a Precision or the float"),
        (lambda: LSTM(3, precision="int8"), "LSTM: precision must be .* got 'int8'"),
        (lambda: Conv(3, 3, precision=None), "Conv: precision must be .* got None"),
        (lambda: BatchNorm(precision=Precision), "BatchNorm: precision must be .* got <class"),
        (lambda: Dense(3)((), X), "expected params w, b, got 'tuple'"),
        (lambda: Dense(3)({"w": jnp.ones((4, 3))}, X), "expected params w, b, got w"),
        (lambda: Conv(3, (3,))({"kernel": X}, X), "expected params w, b, got kernel"),
        (lambda: GroupNorm(2)({"scale": X[0, 0]}, X), "expected params scale, offset, got scale"),
        (lambda: BatchNorm()(LayerNorm().init(KEY, X), X), "mean, var, got scale, offset"),
        (lambda: Embedding(4, 2)({}, IDS), "expected params w, got none"),
        (lambda: Head(4)({}, X), "expected params w, got none"),
        (lambda: PositionEmbedding("learned", 3)((), X), "expected params p, got 'tuple'"),
        (lambda: LSTM(2)(Dense(2).init(KEY, X), X), "expected params w_x, w_h, b, got"),
        (lambda: Attention(2)(Dense(2).init(KEY, X), X), "w_q, w_k, w_v, w_o, got"),
        (lambda: Stack(Dense(4), 4)(Stack(Dense(4), 3).init(KEY, X), X), "leading axis of 4, got 3"),
        (lambda: Branch(*BOTH, merge="concat").init(KEY, X), "'concat' needs arrays, got tuple"),
        (lambda: Branch(*BOTH, merge="product").init(KEY, X), "'product' needs arrays, got tuple"),
        (lambda: Concat()((), ((X, X), X)), "expected a tuple of arrays, got tuple"),
        (lambda: Add()((), (X, 3)), "expected a tuple of arrays, got .*, int"),
        (lambda: Embedding(4, 2).init(KEY, [1, 2]), "an array of ids of an integer dtype, got list"),
        (lambda: Attention(2).init(KEY, {"x": X, "mask": [True]}), "boolean mask .* got list"),
        (lambda: Attention(2).init(KEY, (X, X, X)), r"a pair \(x, memory\), got 3"),
        (lambda: LSTM(2).init(KEY, {"x": X, "mask": [True]}), "boolean mask .* got list"),
        (lambda: Dropout(0.5).forward((), X, True), r"expected Train\(key\) or Eval\(\), got True"),
        (lambda: BatchNorm().forward(BatchNorm().init(KEY, X), X, "train"), "got 'train'"),
        (lambda: Chain(Dense(3)).init(0, X), r"Chain.init\(key, x\): expected a key .* got 0$"),
        (lambda: Dense(3).init(X, KEY), "got the input first and the key second"),
        (lambda: LSTM(3).init(None, X), "expected a key .* got NoneType"),
        (lambda: LastStep()((), X[0, 0]), "a step or more"),
        (lambda: LastStep()((), X[:, :0]), "a step or more"),
        (lambda: PositionEmbedding(16), "got 16; the table's length goes by name: length=16"),
        (lambda: PositionEmbedding()({"p": X[0, :1]}, X), "x is longer than the table: . > 1"),
        (lambda: value_and_grad(Dense(3), "mse"), r"expected a loss such as .* got 'mse'"),
        (lambda: value_and_grad(SquaredError(), Dense(3)), "the network comes first"),
        (lambda: make_step(Dense(3), ReLU()), r"expected a loss such as .* got ReLU\(\)"),
        (lambda: make_epoch(Dense(3), optax.l2_loss), "expected a loss .* got function"),
        (lambda: make_step(Dense(3), SquaredError(), 0.1), "expected an Optax optimizer .* got 0.1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_one_line(make, says) -> None:
    with pytest.raises(InputError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_every_precision_may_be_the_dtype_to_compute_in() -> None:
    layers = [getattr(jaxbp, name) for name in jaxbp.__all__]
    given = {"features": 2, "kernel": 1, "heads": 1, "groups": 1, "size": 3, "length": 3}
    seen = 0
    for cls in layers:
        if not dataclasses.is_dataclass(cls) or not issubclass(cls, Layer):
            continue
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        if "precision" not in fields:
            continue
        seen += 1
        needed = {name: given[name] for name in given if name in fields}
        for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
            layer = cls(**needed, precision=dtype)
            assert layer == cls(**needed, precision=Precision(compute="bfloat16"))
            assert dataclasses.replace(layer, precision=Precision()) == cls(**needed)
    assert seen == 14


def test_a_dtype_as_precision_computes_in_it_alone() -> None:
    layer = Dense(3, precision="bfloat16")
    params = layer.init(KEY, X)
    y, (kept, _) = layer.forward(params, X)
    assert (y.dtype, kept.dtype, params["w"].dtype) == ("float32", "bfloat16", "float32")


@pytest.mark.parametrize("key", [jax.random.key(1), jax.random.PRNGKey(1)])
@pytest.mark.usefixtures("unchecked")
def test_numpys_float64_is_jaxs_float32_and_no_warning(key) -> None:
    """Warnings are errors here: one for every array that is made would end this test."""
    net = Chain(LSTM(4), LastStep(), BatchNorm(), Dense(3), ReLU())
    x, y = np.random.default_rng(0).normal(size=(5, 2, 3)), np.arange(5) % 3
    with jax.enable_x64(False):
        for like in (x, jax.ShapeDtypeStruct(x.shape, x.dtype)):
            params = net.init(key, like)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        net.forward(params, x, Train())
        assert net(params, x).dtype == "float32"
        value_and_grad(net, SoftmaxCrossEntropy())(params, x, y)
