"""What is said of bad input, and the checks that say it: what was wrong, where, and what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp


class InputError(ValueError):
    """Bad input: what was wrong, where, and what was expected. Combinators prepend where."""

    def __init__(self, message: str, where: tuple[str, ...] = ()):
        super().__init__(message)
        self.message, self.where = message, where

    def __str__(self) -> str:
        return " > ".join((*self.where, "")) + self.message if self.where else self.message


@contextmanager
def inside(*places: object) -> Iterator[None]:
    """Add `places`, outermost first, to the address of any `InputError` raised in this block."""
    try:
        yield
    except InputError as error:
        raise InputError(error.message, (*map(str, places), *error.where)) from None


def is_boolean(x: Any) -> bool:
    """Whether `x` is an array of booleans."""
    return hasattr(x, "dtype") and x.dtype == jnp.bool_


def shape_text(x: Any) -> str:
    """`f32[8,64]`-like text for messages: `float32[8, 64]`; for what is not an array, its type."""
    if not hasattr(x, "dtype"):
        return type(x).__name__
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"


def require_parts(layer: object, params: Any, count: int) -> None:
    """Raise `InputError` unless `params` is a tuple of `count` entries, one a part."""
    if not isinstance(params, tuple | list) or len(params) != count:
        got = f"{type(params).__name__} of {len(params)}" if hasattr(params, "__len__") else params
        raise InputError(
            f"{type(layer).__name__}: expected params as a tuple of {count}, one a part, got {got}"
        )


def require_params(layer: object, params: Any, *names: str) -> None:
    """Raise `InputError` unless `params` is a dict with these entries."""
    if not isinstance(params, Mapping) or set(names) - set(params):
        got = ", ".join(params) or "none" if isinstance(params, Mapping) else repr(type(params).__name__)
        raise InputError(f"{layer}: expected params {', '.join(names)}, got {got} (of another network?)")


def require_share(value: Any, what: str) -> None:
    """Raise `InputError` unless `value` is a number of [0, 1)."""
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise InputError(f"{what} must be in [0, 1), got {value!r}")


def require_whole(of: str, **fields: Any) -> None:
    """Raise `InputError` unless every one of the `fields` is an integer above 0."""
    for name, value in fields.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{of}: {name} must be a positive integer, got {value!r}")


def require_positive(value: Any, what: str, hint: str = "") -> None:
    """Raise `InputError` unless `value` is a number above 0."""
    if not isinstance(value, Real) or not float(value) > 0:
        raise InputError(f"{what} must be positive, got {value!r}{hint}")


def require_floating(x: Any, what: str) -> None:
    """Raise `InputError` unless `x` is an array of floating dtype."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        got = shape_text(x) if hasattr(x, "dtype") else type(x).__name__
        raise InputError(f"{what}: expected an array of floating dtype, got {got}")
