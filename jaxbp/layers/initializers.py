"""How weights start, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxbp.layer import InputError, PyTree

INITIALIZERS: dict[str, Callable[..., Array]] = {
    "he": jax.nn.initializers.he_normal(),
    "glorot": jax.nn.initializers.glorot_uniform(),
    "lecun": jax.nn.initializers.lecun_normal(),
    "normal": jax.nn.initializers.normal(),
    "zeros": jax.nn.initializers.zeros,
}


def initializer(choice: str | Callable[..., Array]) -> Callable[..., Array]:
    """The `jax.nn.initializers` function of that name, or `choice` itself if it is a function."""
    if callable(choice):
        return choice
    if choice not in INITIALIZERS:
        raise InputError(f"initializer: expected one of {', '.join(INITIALIZERS)}, got {choice!r}")
    return INITIALIZERS[choice]


class Scaled(NamedTuple):
    """Normal entries of standard deviation `scale`: an initializer that compares by its scale."""

    scale: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> PyTree:
        return initializer("normal")(key, shape, dtype) * (self.scale / 0.01)
