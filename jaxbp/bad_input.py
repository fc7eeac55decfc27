"""What is said of bad input, and the checks that say it: what was wrong, where, and what was expected."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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


# --- before every layer's init and forward -----------------------------------------------------------


def is_key(value: Any) -> bool:
    """Whether `value` is a `jax.random` key: a typed one, or the `uint32` array of an older one."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and value.ndim == 1)


def require_key(layer: object, key: Any, x: Any) -> None:
    """Raise `InputError` unless `key` is a `jax.random` key, and with a hint if `x` is one instead."""
    if is_key(key):
        return
    got = "the input first and the key second" if is_key(x) else shape_text(key)
    got = repr(key) if isinstance(key, Real) and not hasattr(key, "dtype") else got
    raise InputError(
        f"{type(layer).__name__}.init(key, x): expected a key such as jax.random.key(0) first, got {got}"
    )


def jax_arrays(tree: Any) -> Any:
    """`tree` with NumPy's real numbers as JAX would have them; ids and labels stay as they are.

    Without 64-bit values a float64 of NumPy's is a float32 of JAX's, and a layer that asked for the
    dtype of the former would make JAX warn, once for every array that it makes. An int64 is not cut
    down: a layer that reads ids sees the number that was given.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return jnp.asarray(leaf) if leaf.dtype.kind == "f" else leaf
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype != (
            dtype := jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        ):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        return leaf

    return jax.tree.map(one, tree)


def with_key_and_arrays(init: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's `init`, given a key and JAX's arrays or an `InputError`."""

    @functools.wraps(init)
    def checked(self: Any, key: Any, x: Any) -> Any:
        require_key(self, key, x)
        return init(self, key, jax_arrays(x))

    return checked


def with_arrays(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's `forward`, given JAX's arrays."""

    @functools.wraps(forward)
    def given(self: Any, params: Any, x: Any, *mode: Any, **named: Any) -> Any:
        return forward(self, params, jax_arrays(x), *mode, **named)

    return given
