"""Networks for images, `[n, height, width, channels] -> [n, classes]`: `lenet`, `resnet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxbp.compose import Branch, Chain, Residual, Stack
from jaxbp.layer import InputError, Layer, require_whole
from jaxbp.layers import BatchNorm, Conv, Dense, Dropout, Flatten, GlobalAvgPool, MaxPool, ReLU
from jaxbp.precision import with_precision


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
    require_whole("resnet", blocks=blocks)
    if not widths:
        raise InputError("resnet: expected at least one width, got none")

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
