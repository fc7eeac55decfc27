"""Which dtype parameters are kept in, which one is computed in, and which one comes out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxbp.layer import InputError


@dataclass(frozen=True)
class Precision:
    """Dtypes of a layer; `None` means the dtype of the layer's input.

    `params` is what `init` makes, `compute` what the products are taken in, `output` what is handed
    on. Sums always run in float32 at least, and a parameter's gradient comes back in the parameter's
    own dtype: `Precision("float32", "bfloat16", "bfloat16")` is mixed precision on a TPU or GPU.

    A layer also takes a dtype in place of a `Precision`, as the one to compute in: `Dense(3,
    precision="bfloat16")` is `Dense(3, precision=Precision(compute="bfloat16"))`.

    Raises `InputError` for anything but floating dtypes.
    """

    params: Any = None
    compute: Any = None
    output: Any = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, _floating(value, field.name))


class PrecisionField:
    """A layer's field `precision`: a `Precision`, or a dtype, which becomes one as it is set."""

    def __get__(self, layer: Any, owner: type) -> Precision:
        return Precision() if layer is None else layer.__dict__["precision"]

    def __set__(self, layer: Any, value: Precision | str | type | jnp.dtype) -> None:
        if not isinstance(value, Precision):
            name = _name(value)
            if name is None:
                raise InputError(
                    f"{type(layer).__name__}: precision must be a Precision or the floating dtype to "
                    f"compute in, got {value!r}"
                )
            value = Precision(compute=name)
        layer.__dict__["precision"] = value


def _floating(value: Any, what: str) -> str:
    name = _name(value)
    if name is None:
        raise InputError(f"Precision: {what} must be a floating dtype, got {value!r}")
    return name


def _name(value: Any) -> str | None:
    """The name of a floating dtype; `None` for anything else."""
    try:
        dtype = None if value is None else jnp.dtype(value)
    except (TypeError, ValueError):
        return None
    return dtype.name if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else None


def wide(dtype: Any) -> Any:
    """The dtype to accumulate in: float32 for anything narrower, else the dtype itself."""
    dtype = jnp.dtype(dtype)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def matmul(a: Array, b: Array) -> Array:
    """`a @ b` over the last axis of `a` and the first of `b`, accumulated and returned wide."""
    contract = (((a.ndim - 1,), (0,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, preferred_element_type=wide(a.dtype))
