"""Rivals in JAX other than autodiff of our own forward pass: Flax's layers, and `jax.nn`'s attention.

Each is a network in the place of ours, on the same parameters, whose gradient is `jax.grad`'s.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.bench.contestants import AbsentError
from jaxbp.bench.problem import Problem
from jaxbp.bridge import Auto
from jaxbp.layer import Layer, leaves, map_leaves
from jaxbp.layers import Attention, Conv, Dense
from jaxbp.precision import matmul


def flax_layers(row: Any, problem: Problem) -> Layer:
    """The row's network made of Flax's layers."""
    if row.flax is None:
        raise AbsentError("no module for this row")
    try:
        nn = importlib.import_module("flax.linen")
    except ModuleNotFoundError:
        raise AbsentError("flax is not installed") from None
    return FLAX[row.flax](nn, problem.net)


def _flax(module: Any, variables: Callable[[Any], Any]) -> Layer:
    def fn(params: Any, x: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return module.apply({"params": variables(params)}, x)

    return Auto(fn)


def _of_dense(p: Any) -> Any:
    return {"kernel": p["w"], "bias": p["b"]}


def _dtype(net: Layer) -> Any:
    return next(
        (leaf.precision.compute for _, leaf in leaves(net) if isinstance(leaf, Dense | Conv)), None
    )


def _flax_mlp(nn: Any, net: Layer) -> Layer:
    sizes = [leaf.features for _, leaf in leaves(net) if isinstance(leaf, Dense)]
    parts = [part for size in sizes for part in (nn.Dense(size, dtype=_dtype(net)), nn.relu)]

    def variables(params: Any) -> Any:
        dense = [p for p in params if isinstance(p, dict)]
        return {f"layers_{2 * i}": _of_dense(p) for i, p in enumerate(dense)}

    return _flax(nn.Sequential(parts[:-1]), variables)


def _flax_convolution(nn: Any, net: Layer) -> Layer:
    layer: Any = net
    taps = (layer.kernel,) * 2
    if not isinstance(layer, Conv):
        module = nn.ConvTranspose(
            layer.features, taps, (layer.stride,) * 2, dtype=layer.precision.compute
        )
        return _flax(module, lambda p: {"kernel": jnp.flip(p["w"], (0, 1)), "bias": p["b"]})
    module = nn.Conv(
        layer.features, taps, (layer.stride,) * 2, kernel_dilation=(layer.dilation,) * 2,
        feature_group_count=layer.groups, dtype=layer.precision.compute,
    )  # fmt: skip
    return _flax(module, _of_dense)


FLAX: dict[str, Callable[[Any, Layer], Layer]] = {"mlp": _flax_mlp, "convolution": _flax_convolution}


def fused_attention(row: Any, problem: Problem) -> Layer:
    """Attention by `jax.nn.dot_product_attention`, by cuDNN where it takes the dtype."""
    if not row.careful:
        raise AbsentError("nothing for this row")
    return map_leaves(_fused, problem.plain[0] if problem.plain else problem.net)


def _fused(leaf: Layer) -> Layer:
    if not isinstance(leaf, Attention):
        return leaf

    def fn(params: Any, x: Any) -> Any:
        dtype = jnp.dtype(leaf.precision.compute or x.dtype)

        def product(name: str, a: Any) -> Any:
            y = matmul(a, params[f"w_{name}"].astype(dtype)).astype(dtype)
            bias = params.get(f"b_{name}")
            return y if bias is None else y + jnp.broadcast_to(bias.astype(dtype), y.shape)

        q, k, v = (product(name, x.astype(dtype)) for name in "qkv")
        q, k, v = (a.reshape(*a.shape[:-1], leaf.heads, -1) for a in (q, k, v))
        fused = jax.default_backend() == "gpu" and dtype.itemsize == 2
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            o = jax.nn.dot_product_attention(
                q, k, v, is_causal=True, implementation="cudnn" if fused else "xla"
            )
        return product("o", o.reshape(*o.shape[:-2], -1)).astype(leaf.precision.output or x.dtype)

    return Auto(fn)
