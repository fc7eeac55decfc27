"""Gradients of a forward pass by JAX's autodiff: of a network, of one of its weights, of a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import Eval, Layer, Mode, PyTree
from jaxbp.losses import Loss


def quick_jit(fn: Callable[..., Any], level: int = 0) -> Any:
    """`jax.jit`, compiled without XLA's expensive optimisations: such a program is called a few times."""
    options = {"xla_backend_optimization_level": level, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=options if jax.default_backend() == "cpu" else None)


def reference_value_and_grad(net: Layer, loss: Loss) -> Any:
    """`fn(params, x, y, mode=Eval()) -> (value, grads)` with `grads` by `jax.grad`."""

    def value(params: PyTree, x: PyTree, y: Any, mode: Mode) -> Any:
        return loss.forward(net.forward(params, x, mode)[0], y)[0]

    fn = jax.value_and_grad(value, allow_int=True)

    def call(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Any:
        return fn(params, x, y, mode)

    return call


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
        dparams, dx = jax.jit(jax.grad(value, argnums=(0, 1), allow_int=True))(params, x)
        if path == "x":
            real = [g.reshape(-1) for g in jax.tree.leaves(dx) if g.dtype != jax.dtypes.float0]
            return float(jnp.concatenate(real)[index])
        entry = tuple(re.findall(r"[^\W\d]\w*|\d+", path))
        for key, array in jax.tree_util.tree_leaves_with_path(dparams):
            own = tuple(re.findall(r"[^\W\d]\w*|\d+", jax.tree_util.keystr(key)))
            if entry[: len(own)] == own and len(entry) == len(own) + np.ndim(array):
                return float(np.asarray(array)[tuple(map(int, entry[len(own) :]))])
    raise KeyError(path)
