"""Networks that people ask for by name, made of layers."""

from __future__ import annotations

from jaxbp.compose import Chain
from jaxbp.language import char_lstm, gated_mlp, gpt
from jaxbp.layer import InputError, Layer
from jaxbp.layers import Dense, Dropout, ReLU

__all__ = ["char_lstm", "gated_mlp", "gpt", "mlp"]


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
