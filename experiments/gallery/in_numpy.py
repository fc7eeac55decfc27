"""The gallery's gradients by hand, right and wrong, in NumPy: rules that are called and never traced.

Nothing is written twice. A function of the gallery is made again with `numpy` in the place of
`jax.numpy`, and every helper that it calls likewise; where it needs more of JAX than that, or gives other
numbers then, it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import CellType, CodeType, FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gallery.common import Exhibit, Hand


class NeedsJaxError(Exception):
    """A function needs JAX itself."""


def in_numpy(exhibit: Exhibit) -> Exhibit:
    """The same function, with those of its gradients that can be had in NumPy alone."""
    dy = jax.tree.map(lambda y: np.ones(y.shape, y.dtype), jax.eval_shape(exhibit.fn, *exhibit.args))
    made = dict(_written(exhibit, dy))
    return replace(exhibit, faults=made)


def _written(exhibit: Exhibit, dy: Any) -> Iterator[tuple[str, tuple[Hand, tuple[str, ...]]]]:
    given = jax.tree.map(np.asarray, exhibit.args)
    for label, (hand, causes) in exhibit.faults.items():
        try:
            rule = _again(hand, {})
            ours, theirs = jax.tree.leaves(rule(*given, dy)), jax.tree.leaves(hand(*exhibit.args, dy))
        except Exception:  # it needs JAX
            continue
        same = len(ours) == len(theirs) and all(
            isinstance(a, np.ndarray | np.generic) and np.allclose(a, b, 1e-3, 1e-4)
            for a, b in zip(ours, theirs, strict=True)
        )
        if same:
            yield f"{label} (NumPy)", (_of_numbers(rule), causes)


def _of_numbers(rule: Hand) -> Hand:
    return lambda *args: rule(*jax.tree.map(np.asarray, args))


def _again(value: Any, made: dict[int, Any]) -> Any:
    """A function with NumPy for what it takes from `jax.numpy`; anything else as it is."""
    if value is jnp:
        return np
    if value is jax:
        raise NeedsJaxError
    if not isinstance(value, FunctionType) or not value.__module__.startswith("experiments."):
        return value
    if id(value) in made:
        return made[id(value)]
    scope: dict[str, Any] = {"__builtins__": __builtins__}
    cells = tuple(CellType() for _ in value.__closure__ or ())
    fn = FunctionType(value.__code__, scope, value.__name__, value.__defaults__, cells)
    fn.__kwdefaults__, made[id(value)] = value.__kwdefaults__, fn
    for name in _names(value.__code__):
        if name in value.__globals__:
            scope[name] = _again(value.__globals__[name], made)
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        cell.cell_contents = _again(old.cell_contents, made)
    return fn


def _names(code: CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
