"""What `jax.grad` says about the numbers that `explain` shows: the second opinion beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import Layer, Mode, PyTree
from jaxbp.losses import Loss


def function_gradients(f: Callable[..., Any], x: Sequence[Any]) -> list[np.ndarray]:
    """`∂f/∂x_k` for every argument, in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(each, jnp.float64) for each in x]
        return [np.asarray(g) for g in jax.grad(f, argnums=tuple(range(len(wide))))(*wide)]


def network_gradient(
    net: Layer, loss: Loss, params: PyTree, x: PyTree, y: Any, mode: Mode, path: str, index: int
) -> float:
    """`∂L/∂` one entry, by `jax.grad` of the forward pass: `path` from the parameters, or `"x"`."""

    def value(p: PyTree, inputs: PyTree) -> Any:
        return loss.forward(net.forward(p, inputs, mode)[0], y)[0]

    with jax.enable_x64(True):
        dparams, dx = jax.grad(value, argnums=(0, 1), allow_int=True)(params, x)
        if path == "x":
            real = [g.reshape(-1) for g in jax.tree.leaves(dx) if g.dtype != jax.dtypes.float0]
            return float(jnp.concatenate(real)[index])
        entry = tuple(re.findall(r"[^\W\d]\w*|\d+", path))
        for key, array in jax.tree_util.tree_leaves_with_path(dparams):
            own = tuple(re.findall(r"[^\W\d]\w*|\d+", jax.tree_util.keystr(key)))
            if entry[: len(own)] == own and len(entry) == len(own) + np.ndim(array):
                return float(np.asarray(array)[tuple(map(int, entry[len(own) :]))])
    raise KeyError(path)


def cotangents(f: Callable[..., Any], arguments: Sequence[Any], dy: Any) -> list[Any]:
    """`(∂f/∂argument)ᵀ dy` for each argument, by `jax.vjp`."""
    _, pull = jax.vjp(f, *arguments)
    return list(pull(dy))
