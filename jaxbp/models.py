"""Networks that people ask for by name, made of layers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxbp.compose import Chain
from jaxbp.layer import InputError, Layer
from jaxbp.layers import Dense, Dropout, ReLU, Sigmoid, Softmax


def mlp(
    *features: int,
    activation: Layer = ReLU(),
    dropout: float = 0.0,
    initializer: str = "he",
) -> Chain:
    """`Dense → activation → … → Dense`, `[..., in] -> [..., features[-1]]`.

    `mlp(128, 10)` has one hidden layer of 128 and 10 outputs, without an activation after the last
    (losses take logits). The input's size is read in `init`. With `dropout > 0`, each hidden
    activation is followed by `Dropout(dropout)`.
    """
    if not features:
        raise InputError("mlp: expected at least one layer size, got none")
    layers: list[Layer] = []
    for size in features[:-1]:
        layers += [Dense(size, initializer=initializer), activation]
        layers += [Dropout(dropout)] if dropout else []
    return Chain(*layers, Dense(features[-1], initializer=initializer))


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
