"""Layers that move entries without computing with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import jax.numpy as jnp
from jaxtyping import Array, Num

from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree, Static


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """`[batch, d_1, …, d_n] -> [batch, d_1 ⋯ d_n]`: all axes after the first become one.

    Every entry has one path, to its new place, so the error moves back to the old one: a reshape.
    Keeps the shape only. Raises `InputError` where there is no axis to flatten.
    """

    def forward(
        self, params: PyTree, x: Num[Array, "batch *dims"], mode: Mode = Eval()
    ) -> tuple[Num[Array, "batch features"], PyTree]:
        if x.ndim < 2:
            raise InputError(f"Flatten: expected a batch axis and others, got shape {list(x.shape)}")
        inner = x.shape[1:]
        return x.reshape(x.shape[0], prod(inner)), Static(inner)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Num[Array, "*batch features"]
    ) -> tuple[Num[Array, "*dims"], PyTree]:
        return dy.reshape(*dy.shape[:-1], *saved.value), ()


@dataclass(frozen=True, repr=False)
class LastStep(Layer):
    """The last step of a sequence: `y = x_T`. `[..., time, features] -> [..., features]`.

    What a recurrence or causal attention knows of the whole sequence, for a layer that classifies it.
    Only `x_T` has a path to the loss through this layer:

        ∂L/∂x_T = ∂L/∂y,   ∂L/∂x_t = 0 for t < T

    Keeps the length only. Raises `InputError` for `x` without a time axis and for sequences of no step.
    """

    def forward(
        self, params: PyTree, x: Num[Array, "*batch time features"], mode: Mode = Eval()
    ) -> tuple[Num[Array, "*batch features"], PyTree]:
        if x.ndim < 2 or not x.shape[-2]:
            got = list(x.shape)
            raise InputError(f"LastStep: expected x as [..., time, features], a step or more, got {got}")
        return x[..., -1, :], Static(x.shape[-2])

    def pull(
        self, params: PyTree, saved: PyTree, dy: Num[Array, "*batch features"]
    ) -> tuple[Num[Array, "*batch time features"], PyTree]:
        before = [(0, 0)] * (dy.ndim - 1)
        return jnp.pad(dy[..., None, :], [*before, (saved.value - 1, 0), (0, 0)]), ()
