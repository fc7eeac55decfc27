from dataclasses import replace

import jax.numpy as jnp

from jaxbp import BatchNorm, Chain, Dense, GroupNorm, LayerNorm, Residual, RMSNorm, Stack
from tests.proof import Case, further, like, normal


def lifted(mean):
    """Inputs whose mean is far from zero: nothing but the subtraction sees it."""

    def draw(key, dtype):
        return normal(key, (4, 3, 6), dtype) + jnp.asarray(mean, dtype)

    draw.__name__ = f"4x3x6+{mean}"
    return draw


def running(features):
    """Running statistics that are not at their start, with a variance that is positive."""

    def draw(key, dtype):
        names = ("scale", "offset", "mean", "var")
        params = like(key, dict.fromkeys(names, jnp.zeros(features, dtype)))
        return {**params, "var": jnp.abs(params["var"]) + jnp.asarray(0.5, dtype)}

    return draw


def block(norm):
    return Residual(Chain(norm, Dense(6)))


def cases(norm):
    """What every norm is put through; the first in all modes, the rest compiled only, to save time."""
    return [
        Case(norm, (4, 3, 6)),
        *further(
            Case(norm, (5, 6), note="no-positions"),
            Case(norm, (1, 3, 6), note="batch-1"),
            Case(norm, (4, 1, 6), note="length-1"),
            Case(norm, (2, 2, 3, 6), note="two-axes"),
            Case(norm, (4, 3, 6), scale=1e-4),
            Case(norm, (4, 3, 6), scale=1e4),
            Case(norm, lifted(3.0)),
        ),
    ]


def in_training(case):
    return replace(case, train=True)


CASES = [
    *cases(LayerNorm()),
    *cases(RMSNorm()),
    *cases(GroupNorm(2)),
    *map(in_training, cases(BatchNorm())),
    Case(BatchNorm(), (4, 3, 6), params=running(6)),
    *further(
        Case(Stack(block(LayerNorm()), 2), (8, 6), depth=8),
        Case(Stack(block(BatchNorm()), 2), (8, 6), depth=8, train=True),
        Case(Stack(block(RMSNorm()), 2), (8, 6), depth=8),
        Case(Stack(block(GroupNorm(2)), 2), (8, 6), depth=8),
        Case(RMSNorm(), (2, 3, 4, 6)),
        Case(RMSNorm(epsilon=1e-3), (4, 3, 6)),
        Case(LayerNorm(), (6,), note="no-batch"),
        Case(LayerNorm(), (4, 1), note="one-feature"),
        Case(LayerNorm(epsilon=0.1), (5, 6)),
        Case(LayerNorm(epsilon=1e-9), (4, 3, 6)),
        Case(RMSNorm(), (6,), note="no-batch"),
        Case(RMSNorm(epsilon=0.1), (5, 6)),
        Case(GroupNorm(1), (4, 3, 6)),
        # two entries a group: x̂ = ±1, so the error that passes is zero but for ε
        Case(GroupNorm(3), (1, 1, 6), note="length-1-batch-1", saturated=True),
        Case(GroupNorm(6), (4, 3, 6)),
        Case(GroupNorm(3, epsilon=0.1), (2, 2, 3, 6)),
        Case(BatchNorm(), (1, 6), train=True, note="one-entry"),
        Case(BatchNorm(epsilon=0.1), (5, 6), train=True),
        Case(BatchNorm(), (1, 6), params=running(6)),
        Case(BatchNorm(), (2, 2, 3, 6), scale=1e4, params=running(6)),
        Case(BatchNorm(), (2, 2, 3, 6), scale=1e-4, params=running(6)),
    ),
]
