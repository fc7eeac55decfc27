"""Rules that are not written in JAX: NumPy, torch, Triton, CUDA, anything that takes and gives arrays.

Such a rule is called with numbers and never traced: no finding about `jit` or `vmap`, no compilation,
and few calls, for each may be slow. All else is as for a rule in JAX, since a diagnosis edits the program
of the *plain* function and needs of the rule only what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.operations import is_float
from jaxbp.layer import InputError, PyTree


class Opaque:
    """`fn` called with NumPy arrays of its own (it may write into them); counts its calls."""

    def __init__(self, fn: Callable[..., Any], calls: int = 0):
        self.fn, self.calls = fn, calls

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return jax.tree.map(_array, self.fn(*jax.tree.map(_own, args)))


def _own(leaf: Any) -> Any:
    """A writable copy of an array; a PRNG key, a number or a string as it is."""
    plain = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.array(leaf) if plain or isinstance(leaf, np.ndarray) else leaf


def _array(leaf: Any) -> Any:
    """What a rule returned as NumPy's (a torch tensor, on whatever device it is); its dtype is kept."""
    if isinstance(leaf, np.ndarray | np.generic | jax.Array | float | int | complex):
        return leaf
    if type(leaf).__module__.split(".")[0] == "torch":
        return _from_torch(leaf)
    return np.from_dlpack(leaf) if hasattr(leaf, "__dlpack__") else leaf


def is_opaque(hand: Callable[..., Any], args: tuple[Any, ...], result: PyTree) -> bool:
    """Whether `hand`, which gave `result` for `args`, is not written in JAX.

    It cannot be traced, and that because it wants NumPy's arrays, or it returned other arrays than
    JAX's. A rule in JAX that looks at values (`if x.sum() > 0`) cannot be traced either: it is told so.
    """
    try:
        jax.eval_shape(hand, *args)
    except jax.errors.TracerArrayConversionError:
        return True
    except Exception:
        leaves = jax.tree.leaves(result)
        return any(hasattr(leaf, "shape") and not isinstance(leaf, jax.Array) for leaf in leaves)
    return False


# --- torch --------------------------------------------------------------------------------------------


def torch_rule(fn: Callable[..., Any]) -> Callable[..., tuple[Any, tuple[Any, ...]]]:
    """`(*args, dy) -> (y, cotangents)` by `torch.autograd`, of a function of tensors.

    `fn` is `Function.apply` of a `torch.autograd.Function`, or a function that calls it. Arrays become
    tensors of the same dtype on the CPU (a function for a GPU moves them itself), those with a floating
    dtype with `requires_grad`. A cotangent is `None` where torch gives none.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("torch=: needs PyTorch, which is not installed (pip install torch)") from error

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray | np.generic):
            return leaf
        return _to_torch(torch, leaf).requires_grad_(is_float(leaf))

    def rule(*given: Any) -> tuple[Any, tuple[Any, ...]]:
        *args, dy = given
        inputs = jax.tree.map(tensor, tuple(args))
        y = fn(*inputs)
        y = tuple(y) if isinstance(y, list) else y
        outputs = [out for out in jax.tree.leaves(y) if out.requires_grad]
        wanted = [t for t in jax.tree.leaves(inputs) if isinstance(t, torch.Tensor) and t.requires_grad]
        errors = [
            _to_torch(torch, np.asarray(g)).to(out.device)
            for out, g in zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True)
            if out.requires_grad
        ]
        found = iter(
            torch.autograd.grad(outputs, wanted, errors, allow_unused=True)
            if outputs
            else [None] * len(wanted)
        )

        def cotangent(t: Any) -> Any:
            return next(found) if isinstance(t, torch.Tensor) and t.requires_grad else None

        return y, jax.tree.map(cotangent, inputs)

    return rule


def _to_torch(torch: Any, a: Any) -> Any:
    """A tensor with a copy of `a`; NumPy has no bfloat16 of its own, so that goes by its bits."""
    a = np.array(a)
    if a.dtype == jnp.bfloat16:
        return torch.from_numpy(a.view(np.uint16).reshape(a.shape)).view(torch.bfloat16)
    return torch.from_numpy(a)


def _from_torch(t: Any) -> Any:
    import torch

    t = t.detach().cpu()
    if t.dtype == torch.bfloat16:
        return t.contiguous().view(torch.uint16).numpy().view(jnp.bfloat16)
    return t.numpy()
