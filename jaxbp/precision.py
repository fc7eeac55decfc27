"""Which dtype parameters are kept in, which one is computed in, and which one comes out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxbp.layer import InputError, Layer, map_leaves

Net = TypeVar("Net", bound=Layer)


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


def mixed(precision: Any) -> Precision:
    """The `Precision` of a whole network: `dtype` between and inside its layers, parameters in float32.

    A `Precision` is taken as it is. A dtype is what is computed in and handed on; parameters are float32,
    or the dtype itself where that is wider. Raises `InputError` for anything but floating dtypes.
    """
    if isinstance(precision, Precision):
        return precision
    name = _name(precision)
    if name is None:
        raise InputError(f"precision: expected a Precision or a floating dtype, got {precision!r}")
    return Precision(wide(name).name, name, name)


def with_precision(net: Net, precision: Precision | str | type | jnp.dtype | None) -> Net:
    """The same network in another precision: mixed precision everywhere.

    `precision` is a `Precision` for every layer that takes one, or a dtype: `with_precision(net,
    "bfloat16")` gives every such layer `Precision("float32", "bfloat16", "bfloat16")`, so that
    activations and errors flow in bfloat16 from the first layer, which casts its input, to the last,
    while parameters, their gradients and so the optimizer stay float32. Layers without a `precision`
    (activations, pooling, dropout) follow their input. Sums, the statistics of norms and the losses are
    taken in float32 at least, as everywhere.

    `net`'s own precisions are replaced, unless `precision` is `None`, which changes nothing. Parameters
    and their structure are the same, so that those trained in one precision serve in another.

        y = round(f(round(x), round(w)))        ∂L/∂w comes back in the dtype of w, ∂L/∂x in that of x

    Rounding counts as the identity in the derivative, as in autodiff. Source: Micikevicius et al. 2018.
    """
    if precision is None:
        return net
    wanted = mixed(precision)

    def set_precision(layer: Layer) -> Layer:
        named = {field.name for field in fields(layer)}  # pyright: ignore[reportArgumentType]
        if "precision" not in named:
            return layer
        changed: Any = layer
        return dataclasses.replace(changed, precision=wanted)

    return cast("Net", map_leaves(set_precision, net))


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


def matmul(a: Array, b: Array, dtype: Any = None) -> Array:
    """`a @ b` over the last axis of `a` and the first of `b`, accumulated wide; in `dtype`, or wide.

    The sum is rounded once, at its end. An accelerator's product accumulates in float32 whatever it
    returns, so there it returns `dtype` itself and no float32 copy is written only to be cast. A CPU's
    makes no such promise, and returns it wide, to be cast.
    """
    contract, full = (((a.ndim - 1,), (0,)), ((), ())), wide(a.dtype)
    out = full if dtype is None else jnp.dtype(dtype)
    narrow = out == a.dtype and jax.default_backend() != "cpu"
    y = jax.lax.dot_general(a, b, contract, preferred_element_type=out if narrow else full)
    return y.astype(out)
