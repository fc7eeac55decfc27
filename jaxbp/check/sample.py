"""Where a gradient is looked at: the caller's arguments, and others like them.

A fault can hide where a bias is 0, a scale is 1, a sign is positive or a value is small, so the
arguments are also varied, enlarged, shrunk and turned. What looks bound by a condition stays bound: a
0/1 mask and a distribution are left alone, symmetric and sorted arrays are only scaled, and signs are
turned only where both occur. Points where the function itself is not finite are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Point:
    """Leaves and output cotangents in the working dtype; `same` numbers points of the same leaves."""

    label: str
    leaves: list[Any]
    dy: list[Any]


NEARBY = ("with other values", "with other values again")
FAR = ("with arguments 8 times larger", "with arguments 10 times smaller", "with some signs turned")


def make_points(
    leaves: Sequence[Any], dy_like: Sequence[Any], samples: int, seed: int, given: Any, far: bool
) -> list[Point]:
    """`samples` points (the given one first) and, with `far`, larger, smaller and turned ones."""
    rng = np.random.default_rng(seed)
    base = [np.asarray(leaf) for leaf in leaves]
    labels = ["as given", *(NEARBY[i % 2] for i in range(samples - 1)), *(FAR if far else ())]
    made = []
    for i, label in enumerate(labels):
        values = base if i == 0 else [_vary(leaf, label, rng) for leaf in base]
        dy = [_cotangent(like, rng) for like in dy_like]
        if i == 0 and given is not None:
            dy = [np.asarray(g, like.dtype) for g, like in zip(given, dy_like, strict=True)]
        made.append(Point(label, values, dy))
    return made


def second_cotangent(point: Point, seed: int) -> Point:
    """The same leaves with another cotangent."""
    rng = np.random.default_rng([seed, 1])
    return Point(
        f"{point.label}, another cotangent", point.leaves, [_cotangent(d, rng) for d in point.dy]
    )


def _cotangent(like: Any, rng: np.random.Generator) -> Any:
    """Random, of both signs, and of sizes between ½ and 1½: no entry is negligible, none are alike."""
    signs = np.where(rng.random(like.shape) < 0.5, -1.0, 1.0)
    return (signs * rng.uniform(0.5, 1.5, like.shape)).astype(like.dtype)


def _vary(leaf: Any, label: str, rng: np.random.Generator) -> Any:
    x = leaf.astype(np.float64)
    if _bound(x):
        return leaf
    noise = rng.standard_normal(x.shape)
    mixed = bool(np.any(x > 0) and np.any(x < 0))
    turn = np.where(rng.random(x.shape) < 0.5, -1.0, 1.0)
    factor = {FAR[0]: 8.0, FAR[1]: 0.1}.get(label, 1.0)
    if _ordered(x):
        return (x * (factor if factor != 1 else 1 + 0.3 * abs(noise.flat[0]))).astype(leaf.dtype)
    if label == FAR[2]:
        new = x * turn if mixed else x * np.exp(0.3 * noise)
    else:
        new = factor * x * np.exp(0.3 * np.clip(noise, -2, 2))
    if x.size and np.all(x == 0):
        new = 0.3 * factor * noise
    return new.astype(leaf.dtype)


def is_bound(x: np.ndarray) -> bool:
    """Whether `x` looks bound by a condition that a changed entry would break."""
    return _bound(x) or _ordered(x)


def _bound(x: np.ndarray) -> bool:
    """Whether `x` looks like a mask, a distribution or a set of unit vectors."""
    if not x.ndim or not x.size:
        return False
    values = np.unique(x)
    if len(values) == 2 and np.array_equal(values, [0, 1]):
        return True
    if x.shape[-1] < 2:
        return False
    if np.all(x >= 0) and np.allclose(x.sum(-1), 1, atol=2e-3):
        return True
    return np.allclose(np.linalg.norm(x, axis=-1), 1, atol=2e-3) and not np.all(np.abs(x) == 1)


def _ordered(x: np.ndarray) -> bool:
    """Whether `x` looks sorted or symmetric, which scaling by one number keeps."""
    if x.ndim == 1 and x.size >= 3:
        return bool(np.all(np.diff(x) > 0))
    square = x.ndim >= 2 and x.shape[-1] == x.shape[-2] and x.shape[-1] > 1
    return square and np.allclose(x, np.swapaxes(x, -1, -2)) and not np.all(x == x.flat[0])
