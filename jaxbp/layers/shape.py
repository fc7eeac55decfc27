"""Layers that move entries without computing with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

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
