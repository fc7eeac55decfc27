"""The networks by name: their shapes, their gradients, and that they learn in two precisions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import (
    InputError,
    Precision,
    SoftmaxCrossEntropy,
    SquaredError,
    Train,
    make_epoch,
    value_and_grad,
)
from jaxbp.layer import leaves, map_leaves
from jaxbp.layers import BatchNorm, Conv, Dense
from jaxbp.models import autoencoder, lenet, resnet
from jaxbp.oracle import reference_value_and_grad, relative_error, to_float64
from tests.interpreter import interpret
from tests.proof import normal

IMAGES = (6, 8, 8, 1)


@pytest.mark.parametrize(
    ("net", "x", "parameters"),
    [
        (lenet(), (1, 28, 28, 1), 156 + 2_416 + (7 * 7 * 16 + 1) * 120 + 121 * 84 + 85 * 10),
        (resnet(blocks=3), (1, 32, 32, 3), 272_474),  # ResNet-20 with projections
    ],
    ids=["lenet", "resnet20"],
)
def test_sizes(net, x, parameters) -> None:
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(x, "float32"))
    mask = jax.tree.leaves(net.trainable(params))
    count = sum(a.size for a, yes in zip(jax.tree.leaves(params), mask, strict=True) if yes)
    assert count == parameters


@pytest.mark.parametrize(
    "net",
    [lenet(4, features=(3,), hidden=(5,), kernel=3), resnet(4, widths=(3, 5))],
    ids=["lenet", "resnet"],
)
def test_gradients_are_those_of_autodiff_in_training(net) -> None:
    x, y = normal(1, IMAGES, "float32"), jnp.arange(6) % 4
    loss, mode = SoftmaxCrossEntropy(), Train(jax.random.key(1))
    params = jax.jit(net.init)(jax.random.key(0), x)
    args = *to_float64((params, x)), y, mode
    reference = interpret(reference_value_and_grad(net, loss), *args)(*args)[1]
    grads = interpret(value_and_grad(net, loss), *args)(*args)[1]
    size = max(float(np.max(np.abs(g))) for g in jax.tree.leaves(reference))
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(reference), strict=True):
        assert np.max(np.abs(got - expected)) <= 1e-10 * size


def test_blocks_of_one_shape_are_compiled_once() -> None:
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")

    def program(blocks):
        net = resnet(blocks=blocks)
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        return str(jax.make_jaxpr(net.__call__)(params, x)).count("conv_general_dilated")

    assert program(3) == program(9)
    assert len(list(leaves(resnet(blocks=3)))) == len(list(leaves(resnet(blocks=9))))


def test_an_autoencoder_gives_back_what_it_takes_through_a_narrow_middle() -> None:
    net = autoencoder(6, 2, outputs=9)
    x = jnp.abs(normal(1, (5, 9), "float32"))
    params = net.init(jax.random.key(0), x)
    widths = [p["b"].shape[0] for part in params for p in part if p]
    assert widths == [6, 2, 6, 9]
    epoch = make_epoch(net, SquaredError(), optax.sgd(0.01), 5)
    state, losses = (params, optax.sgd(0.01).init(params)), []
    for i in range(30):
        *state, loss = epoch(*state, x, x, jax.random.key(i))
        losses.append(float(loss[0]))
    assert losses[-1] < 0.5 * losses[0]


def in_precision(net, precision):
    """The same network with every convolution, norm and dense layer in that precision."""

    def change(leaf):
        mixed = isinstance(leaf, Conv | Dense | BatchNorm)
        return dataclasses.replace(leaf, precision=precision) if mixed else leaf

    return map_leaves(change, net)


def test_the_loss_curve_in_bfloat16_stays_within_2_percent_of_float32() -> None:
    """The digits CNN, same start, same batches: the mean loss of every epoch in the two precisions.

    At a learning rate where training is steady; where the loss itself jumps about, so do the two runs.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = jnp.asarray(images.reshape(-1, 8, 8, 1) / 16, "float32")
    y = jnp.asarray(labels, "int32")
    narrow = Precision("float32", "bfloat16", "bfloat16")
    plain = lenet(features=(8, 16), hidden=(32,), kernel=3)
    tx, curves = optax.adam(1e-3), []
    for net in (plain, in_precision(plain, narrow)):
        epoch = make_epoch(net, SoftmaxCrossEntropy(), tx, 64)
        params = net.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        state, curve = (params, tx.init(params)), []
        for i in range(12):
            with jax.numpy_dtype_promotion("standard"):  # Optax's Adam promotes
                *state, losses = epoch(*state, x, y, jax.random.key(i))
            curve.append(float(jnp.mean(losses)))
        curves.append(curve)
    exact, mixed = np.asarray(curves)
    assert exact[-1] < 0.2 * exact[0]
    assert np.max(np.abs(mixed / exact - 1)) < 0.02, (exact, mixed)
    assert relative_error(mixed, exact) > 1e-6  # the second run did compute in bfloat16


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: resnet(blocks=0), "blocks"),
        (lambda: resnet(widths=()), "at least one width"),
        (lambda: autoencoder(outputs=3), "the size of the code"),
        (
            lambda: lenet().init(jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, 1), "float32")),
            "does not fit",
        ),
    ],
)
def test_bad_input_is_one_line(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()
