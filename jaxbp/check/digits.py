"""Measured numbers in words: with the digits that say something, and none that rounding alone decides.

How a compiler rounds changes with its version. A report is to read the same for all that: of what is
rounding it says what it stays below, and of two different numbers as much as tells them apart.
"""

from __future__ import annotations

import math

import jax.numpy as jnp


def noise_words(value: float, dtype: str) -> str:
    """A measured rounding: the power of ten that it stays below, at least the last digit of `dtype`."""
    if not math.isfinite(value):
        return f"{value:.2g}"
    least = float(jnp.finfo(dtype).eps) if "float" in dtype or "complex" in dtype else 0.0
    most = max(value, least)
    return f"<{10.0 ** math.ceil(math.log10(most)):.0e}" if most else "0"


def error_words(error: float, dtype: str, verdict: str) -> str:
    """An error to two digits; where the verdict is that it is right, it is rounding."""
    return noise_words(error, dtype) if verdict == "right" else f"{error:.2g}"


def pair_words(got: float, expected: float) -> str:
    """Two numbers with two digits more than tell them apart, between four and six."""
    gap, size = abs(got - expected), max(abs(got), abs(expected))
    near = math.isfinite(gap) and 0 < gap < size
    digits = min(6, max(4, 2 - math.floor(math.log10(gap / size)))) if near else 4
    return f"{got:.{digits}g}, expected {expected:.{digits}g}"
