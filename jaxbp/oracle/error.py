"""How far two arrays are apart, and float64 to measure it in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import PyTree


def to_float64(tree: PyTree) -> PyTree:
    """Floating leaves as float64 (`jax.enable_x64` must be on), everything else as it is."""

    def widen(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(widen, tree)


def relative_error(got: Any, reference: Any, floor: float = 0.0) -> float:
    """`max |got - reference| / max |reference|` of one array; the largest entry sets the scale.

    `floor` is the least scale to measure against, for references that are zero but for rounding; one
    that is zero throughout has no scale, and without a floor its error is absolute. Not finite where
    `got` or `reference` is not. Raises `ValueError` where the shapes differ.
    """
    got, reference = np.asarray(got, np.float64), np.asarray(reference, np.float64)
    if got.shape != reference.shape:
        raise ValueError(f"shapes differ: {got.shape} and {reference.shape}")
    if not got.size:
        return 0.0
    scale = max(np.max(np.abs(reference)), floor)
    return float(np.max(np.abs(got - reference)) / (scale if scale > 0 else 1.0))
