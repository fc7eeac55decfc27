"""Windows that move along a value: pools whose windows share entries, kernels with their steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.edit import Instead
from jaxbp.check.operations import Op

MOST = 25  # places in a window


def windows(op: Op) -> Iterator[Instead]:
    """A maximum whose error goes to the whole window; windows whose errors overwrite each other."""
    p, greatest = op.params, op.primitive.name != "reduce_window_sum"
    window = (p["window_dimensions"], p["window_strides"], p["padding"], p["base_dilation"])
    size = prod(p["window_dimensions"])

    def total(x: Any) -> Any:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, *window, p["window_dilation"])

    shares = (("of the sum over the window", 1.0), ("of the mean over the window", 1 / size))
    for words, share in shares if greatest else ():
        make = lambda x, y, env, given, k=share: k * total(x[0])  # noqa: E731
        yield Instead(op, 0, make, "wrong-activation", words)
    steps = zip(p["window_dimensions"], p["window_strides"], strict=True)
    plain = {*p["base_dilation"], *p["window_dilation"]} == {1}
    if plain and size <= MOST and any(n > s for n, s in steps):
        for which, last in (("last", True), ("first", False)):
            words = (
                f"that of the {which} of several windows that share an entry: overwritten, not added up"
            )
            yield Instead(op, 0, _one_window_each(op, last, greatest), "missing-rows", words)


def _one_window_each(op: Op, last: bool, greatest: bool) -> Any:
    """The pool as a sum over the places in the window, of which every entry keeps one window alone."""
    p, n = op.params, op.out_avals[0].shape
    sizes, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]

    def make(x: Any, y: Any, env: dict, given: Any) -> Any:
        padded = jax.lax.pad(x[0], jnp.zeros((), x[0].dtype), [(a, b, 0) for a, b in padding])
        made: Any = 0.0
        for place in itertools.product(*(range(size) for size in sizes)):
            ends = [o + (k - 1) * s + 1 for o, k, s in zip(place, n, strides, strict=True)]
            part = jax.lax.slice(padded, place, ends, strides)
            for axis, (o, k, s, size) in enumerate(zip(place, n, strides, sizes, strict=True)):
                index = jnp.arange(k)
                entry = o + index * s
                own = (
                    jnp.minimum(entry // s, k - 1) if last else jnp.maximum(-((size - 1 - entry) // s), 0)
                )
                part = part * (own == index).reshape([-1 if a == axis else 1 for a in range(len(n))])
            made = made + (
                jnp.where(jax.lax.stop_gradient(part == y[0]), part, 0.0) if greatest else part
            )
        return made

    return make


def taps(op: Op) -> Iterator[Instead]:
    """A convolution whose error meets the image at other places: a step or a distance not looked at.

    On its way to the image, or to the kernel.
    """
    if op.primitive.name != "conv_general_dilated":
        return
    p = op.params
    plain = {"window_strides": p["window_strides"], "rhs_dilation": p["rhs_dilation"]}
    others = [
        (f"taken with a {what} of 1", {**plain, name: (1,) * len(plain[name])}, 0)
        for name, what in (("window_strides", "stride"), ("rhs_dilation", "dilation of the kernel"))
        if any(n != 1 for n in plain[name])
    ]
    others += [(f"moved by {step}: the padding is another one", plain, step) for step in (1, -1)]
    for words, steps, moved in others:
        params = _elsewhere(op, steps, moved)
        for k, cause in ((0, "missing-rows"), (1, "wrong-point")) if params != dict(p) else ():
            yield Instead(op, k, _with(op, k, params), cause, words, about="error")


def _with(op: Op, k: int, params: dict[str, Any]) -> Any:
    def make(x: list[Any], y: list[Any], env: dict, given: Any) -> Any:
        still = jax.lax.stop_gradient
        return op.primitive.bind(*(v if n == k else still(v) for n, v in enumerate(x)), **params)

    return make


def _elsewhere(op: Op, steps: dict[str, Any], moved: int) -> dict[str, Any]:
    """The same product of the same size with other steps; what it needs of the image is cut or padded."""
    p, spec = op.params, op.params["dimension_numbers"]
    lengths = [op.in_avals[0].shape[a] for a in spec.lhs_spec[2:]]
    taken = [op.in_avals[1].shape[a] for a in spec.rhs_spec[2:]]
    made = [op.out_avals[0].shape[a] for a in spec.out_spec[2:]]
    padding = []
    for n, k, m, s, d, inner, (low, _) in zip(
        lengths, taken, made, steps["window_strides"], steps["rhs_dilation"], p["lhs_dilation"],
        p["padding"], strict=True,
    ):  # fmt: skip
        low += moved if k > 1 else 0
        needed = (m - 1) * s + (k - 1) * d + 1
        padding.append((low, needed - ((n - 1) * inner + 1) - low))
    return {**p, **steps, "padding": tuple(padding)}
