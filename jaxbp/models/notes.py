"""The worked example of the lecture notes: a network, its numbers, and an example to learn."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxbp.compose import Chain
from jaxbp.layers import Dense, Sigmoid, Softmax

# Matrices as the notes write them: rows = to, columns = from.
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
