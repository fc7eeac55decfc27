"""Networks that people ask for by name, made of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxbp.compose import Branch, Chain, Residual, Stack
from jaxbp.language import char_lstm, gated_mlp, gpt
from jaxbp.layer import InputError, Layer
from jaxbp.layers import (
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    MaxPool,
    ReLU,
    Sigmoid,
    Softmax,
)
from jaxbp.precision import with_precision

__all__ = ["autoencoder", "char_lstm", "gated_mlp", "gpt", "lenet", "mlp", "notes_network", "resnet"]


def mlp(
    *features: int,
    activation: Layer = ReLU(),
    dropout: float = 0.0,
    initializer: str = "he",
    precision: Any = None,
) -> Chain:
    """`Dense → activation → … → Dense`, `[..., in] -> [..., features[-1]]`.

    `mlp(128, 10)` has one hidden layer of 128 and 10 outputs, without an activation after the last
    (losses take logits). The input's size is read in `init`. With `dropout > 0`, each hidden
    activation is followed by `Dropout(dropout)`. `precision` is that of every layer, as in
    `with_precision`.
    """
    if not features:
        raise InputError("mlp: expected at least one layer size, got none")
    layers: list[Layer] = []
    for size in features[:-1]:
        layers += [Dense(size, initializer=initializer), activation]
        layers += [Dropout(dropout)] if dropout else []
    return with_precision(Chain(*layers, Dense(features[-1], initializer=initializer)), precision)


# The worked example of the lecture notes. Matrices as the notes write them: rows = to, columns = from.
NOTES_W1 = (
    (0.1, 0.3, 0.8, -0.4),
    (-0.3, -0.2, 0.5, 0.5),
    (-0.3, 0.0, 0.5, 0.4),
    (0.2, 0.5, -0.9, 0.7),
)
NOTES_W2 = ((0.5, 0.8, 0.2, 0.4), (0.5, 0.2, 0.3, -0.5))
NOTES_X = (2.0, 5.0, 3.0, 3.0)
NOTES_Y = (1.0, 0.0)


def notes_network(dtype: Any = None) -> tuple[Chain, Any, Any, Any]:
    """`(net, params, x, y)` of the notes' 4-4-2 network: sigmoid, then softmax; all biases 0.

    The notes train it with `SquaredError("sum")` and a learning rate of 1. `dtype` is JAX's default
    float unless given; `w = Wᵀ`, since `Dense` keeps `[in, out]`.
    """
    net = Chain(Dense(4), Sigmoid(), Dense(2), Softmax())
    w1, w2, x, y = (jnp.asarray(a, dtype) for a in (NOTES_W1, NOTES_W2, NOTES_X, NOTES_Y))
    first = {"w": w1.T, "b": jnp.zeros(4, w1.dtype)}
    second = {"w": w2.T, "b": jnp.zeros(2, w2.dtype)}
    return net, (first, (), second, ()), x, y


def lenet(
    classes: int = 10,
    *,
    features: Sequence[int] = (6, 16),
    hidden: Sequence[int] = (120, 84),
    kernel: int = 5,
    activation: Layer = ReLU(),
    dropout: float = 0.0,
    precision: Any = None,
) -> Chain:
    """`(Conv → activation → MaxPool(2))ⁿ → Flatten → Dense …`: images `NHWC` to `[n, classes]`.

    One convolution for each entry of `features`, each halving the image; the defaults are LeNet-5's
    sizes (LeCun et al. 1998), with padded convolutions so that small images fit, ReLU and max pooling.
    With `dropout > 0`, each dense layer is preceded by `Dropout(dropout)`. `precision` is that of every
    layer, as in `with_precision`.
    """
    layers: list[Layer] = []
    for width in features:
        layers += [Conv(width, kernel, initializer="he"), activation, MaxPool(2)]
    layers.append(Flatten())
    for size in hidden:
        layers += [Dropout(dropout)] if dropout else []
        layers += [Dense(size, initializer="he"), activation]
    layers += [Dropout(dropout)] if dropout else []
    return with_precision(Chain(*layers, Dense(classes)), precision)


def resnet(
    classes: int = 10,
    *,
    blocks: int = 1,
    widths: Sequence[int] = (16, 32, 64),
    dropout: float = 0.0,
    momentum: float = 0.9,
    precision: Any = None,
) -> Chain:
    """The residual network for small images, `[n, height, width, channels] -> [n, classes]`.

    `Conv(3×3) → BatchNorm → ReLU`, then a stage for each entry of `widths`: `blocks` blocks of two 3×3
    convolutions with BatchNorm and a skip, every stage but the first halving the image in its first
    block; then the mean over all positions and a dense layer. Depth is `2 · blocks · len(widths) + 2`:
    `blocks=3` is ResNet-20. Where a block changes the shape, its skip is a 1×1 convolution with
    BatchNorm (option B of He et al. 2016). The blocks of a stage that do not are one `Stack`, compiled
    once. With `dropout > 0`, the last layer is preceded by `Dropout(dropout)`; `momentum` is that of the
    running statistics, `precision` that of every layer, as in `with_precision`.
    """
    if blocks < 1 or not widths:
        raise InputError(f"resnet: expected blocks ≥ 1 and at least one width, got {blocks}, {widths}")

    def conv(width: int, kernel: int, stride: int = 1) -> list[Layer]:
        norm = BatchNorm(momentum=momentum)
        return [Conv(width, kernel, stride=stride, bias=False, initializer="he"), norm]

    def body(width: int, stride: int = 1) -> Chain:
        return Chain(*conv(width, 3, stride), ReLU(), *conv(width, 3))

    layers: list[Layer] = [*conv(widths[0], 3), ReLU()]
    for i, width in enumerate(widths):
        stride = 1 if i == 0 else 2
        same = blocks
        if stride > 1 or width != widths[0]:
            layers += [Branch(body(width, stride), Chain(*conv(width, 1, stride))), ReLU()]
            same -= 1
        if same:
            layers.append(Stack(Chain(Residual(body(width)), ReLU()), same))
    drop = [Dropout(dropout)] if dropout else []
    return with_precision(Chain(*layers, GlobalAvgPool(), *drop, Dense(classes)), precision)


def autoencoder(*features: int, outputs: int, activation: Layer = ReLU(), precision: Any = None) -> Chain:
    """`[..., outputs] -> [..., outputs]` through a narrow middle: `mlp` there, and back the same way.

    `autoencoder(128, 16, outputs=64)` has layers of 128, 16 (the code), 128 and 64 features, with an
    activation after each but the code and the last. Train it with `SquaredError` and its own input as
    the target. `precision` is that of every layer, as in `with_precision`.
    """
    if not features:
        raise InputError("autoencoder: expected at least the size of the code, got none")
    encoder = mlp(*features, activation=activation)
    decoder = mlp(*features[-2::-1], outputs, activation=activation)
    return with_precision(Chain(encoder, decoder), precision)
