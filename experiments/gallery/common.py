"""What an exhibit is, and how a right gradient is made wrong.

Every `Exhibit` is a function with arguments and a right gradient; `faults` are wrong ones, each with the
causes that name it (one of them is enough: some slips have two true names).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

Hand = Callable[..., Any]


@dataclass(frozen=True)
class Exhibit:
    """`fn(*args)`, a right `hand(*args, dy)`, and wrong ones by name: `(hand, causes)`."""

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    hand: Hand
    faults: dict[str, tuple[Hand, tuple[str, ...]]] = field(default_factory=dict)


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def edit(hand: Hand, change: Callable[..., Any]) -> Hand:
    """A hand-written gradient, changed afterwards: `change(grads, *args)`."""
    return lambda *args: change(tuple(hand(*args)), *args)


def replace(i: int, fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda grads, *args: tuple(fn(g, *args) if n == i else g for n, g in enumerate(grads))
