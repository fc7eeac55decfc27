"""Networks of dense layers, for rows of numbers: `mlp`, `autoencoder`."""

from __future__ import annotations

from typing import Any

from jaxbp.compose import Chain
from jaxbp.layer import InputError, Layer
from jaxbp.layers import Dense, Dropout, ReLU
from jaxbp.precision import with_precision


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
