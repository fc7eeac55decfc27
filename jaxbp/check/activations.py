"""Derivatives that are written in the place of another function's, by mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "leaky relu (0.01)": lambda a: jnp.where(a >= 0, a, 0.01 * a),
    "leaky relu (0.1)": lambda a: jnp.where(a >= 0, a, 0.1 * a),
    "leaky relu (0.2)": lambda a: jnp.where(a >= 0, a, 0.2 * a),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "the exact (erf) gelu": lambda a: jax.nn.gelu(a, approximate=False),
    "the tanh gelu": lambda a: jax.nn.gelu(a, approximate=True),
    "the quick gelu": lambda a: a * jax.nn.sigmoid(1.702 * a),
    "mish": lambda a: a * jnp.tanh(jax.nn.softplus(a)),
    "softsign": lambda a: a / (1 + jnp.abs(a)),
    "exp": jnp.exp,
    "log": lambda a: jnp.log(jnp.abs(a)),
    "sin": jnp.sin,
    "cos": jnp.cos,
    "-cos": lambda a: -jnp.cos(a),
    "the square": lambda a: a * a,
    "the cube": lambda a: a * a * a,
    "the square root": lambda a: jnp.sqrt(jnp.abs(a)),
    "the reciprocal": lambda a: 1 / a,
    "the absolute value": jnp.abs,
    "erf": jax.scipy.special.erf,
    "the normal distribution function": jax.scipy.stats.norm.cdf,
    "the identity": lambda a: a,
}

IN_THE_OUTPUT: dict[str, Callable[[Any], Any]] = {
    "h(1 - h)": lambda h: h * (1 - h),
    "1 - h²": lambda h: 1 - h * h,
    "h": lambda h: h,
    "1 - e⁻ʰ": lambda h: -jnp.expm1(-h),
    "1/(2h)": lambda h: 0.5 / h,
    "-h²": lambda h: -h * h,
}


def alternatives() -> Iterator[tuple[str, str, Callable[[Any, Any], Any]]]:
    """`(words, cause, derivative(a, h))` of input and output, for every function here."""
    for name, fn in FUNCTIONS.items():
        yield f"of {name}", "wrong-activation", lambda a, h, fn=fn: _slope(fn, a)
    for formula, fn in IN_THE_OUTPUT.items():
        words = f"by the formula {formula}, which is meant for the output, at the input"
        yield words, "wrong-point", lambda a, h, fn=fn: fn(a)
    for formula, fn in IN_THE_OUTPUT.items():
        yield (
            f"by the formula {formula} of another function",
            "wrong-activation",
            lambda a, h, fn=fn: fn(h),
        )


def _slope(fn: Callable[[Any], Any], a: Any) -> Any:
    return jax.jvp(fn, (a,), (jnp.ones_like(a),))[1]
