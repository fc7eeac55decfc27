"""How far one array is from another, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxbp.check import noise
from jaxbp.check.operations import is_float

NOTHING = 1e-12  # of the truth: a claim that is 0 but for rounding


def arrays(values: Sequence[Any]) -> list[np.ndarray]:
    """As float64 numpy arrays."""
    return [np.asarray(v, np.float64) for v in values]


def array(g: Any, leaf: Any) -> np.ndarray:
    """A cotangent as a float64 numpy array; 0 where there is none."""
    return np.zeros(leaf.shape) if g is None else np.asarray(g, np.float64)


def error(got: np.ndarray, true: np.ndarray) -> float:
    """Largest difference over largest true entry; infinite for another shape, or where only the claim
    is not finite. Where the truth is not finite there is nothing to compare with.
    """
    if got.shape != true.shape:
        return np.inf
    if not got.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        largest = noise.scale_of(got - true)
    if np.isfinite(largest):
        return largest / (noise.scale_of(true) or 1.0) if largest else 0.0
    same = (got == true) | ~np.isfinite(true)
    if np.all(same):
        return 0.0
    if not np.all(np.isfinite(got[~same])):
        return np.inf
    with np.errstate(invalid="ignore"):
        gap = np.max(np.abs(np.where(same, 0, got - true)))
    return float(gap / (noise.scale_of(true[np.isfinite(true)]) or 1.0))


def worst(got: np.ndarray, true: np.ndarray) -> tuple[int, ...]:
    """The index of the largest difference; the first one, where several are as large but for rounding."""
    if got.shape != true.shape or not got.size:
        return ()
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - true)
    difference = np.where(np.isnan(difference), np.inf, difference)
    first = int(np.argmax(difference >= (1 - 1e-3) * np.max(difference)))
    return tuple(int(n) for n in np.unravel_index(first, got.shape))


def values_differ(a: np.ndarray, b: np.ndarray) -> str:
    """In words, where two outputs are not the same up to rounding; empty where they are."""
    if a.shape != b.shape:
        return f"has shape {list(a.shape)}, expected {list(b.shape)}"
    if a.dtype != b.dtype:
        return f"has dtype {a.dtype}, expected {b.dtype}"
    if not is_float(b) or not b.size:
        return "" if np.array_equal(a, b) else "has other values"
    first, second = a.astype(np.float64), b.astype(np.float64)
    power = 0.75 if b.dtype.itemsize < 4 else 1
    if error(first, second) <= max(1e3 * noise.epsilon(b.dtype), 1e-9) ** power:
        return ""
    index = worst(first, second)
    return f"is {first[index]:.6g} at {list(index)}, expected {second[index]:.6g}"
