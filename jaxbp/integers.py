"""Labels and ids: integers of any dtype, compared as the numbers that they are.

A bound that the dtype cannot hold (256 for uint8, -1 for unsigned integers) is beyond all of its numbers;
cast to the dtype it would wrap around to one of them.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbp.layer import InputError


def is_integer(array: Any) -> bool:
    """Whether the dtype is one of integers, or of booleans: 0 and 1."""
    return jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_


def between(integers: Any, low: int, high: int) -> Any:
    """`low ≤ i ≤ high`, an array of booleans of the same kind (NumPy's or JAX's)."""
    if integers.dtype == jnp.bool_:
        integers = integers.astype(np.int32)
    info = jnp.iinfo(integers.dtype)
    if low > info.max or high < info.min:
        return integers != integers  # none is
    return (integers >= max(low, int(info.min))) & (integers <= min(high, int(info.max)))


def require_all(valid: Any, values: Any, message: str, noun: str) -> None:
    """Where values can be seen (not those that `jit` traces): raise `InputError` unless all are valid."""
    if not isinstance(valid, Tracer) and not bool(valid.all()):
        wrong = values[~valid]
        count = f"{wrong.size} of {values.size} {noun}"
        raise InputError(f"{message}, got {wrong.reshape(-1)[0]} ({count})")
