"""The checker's oracle: the same function, differentiated by autodiff in float64 and without `jit`.

That of a network and its loss, without a checker around it, is in `jaxbp/oracle/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbp.check.operations import is_float
from jaxbp.check.program import Program, read
from jaxbp.check.target import Target
from jaxbp.layer import InputError
from jaxbp.oracle.autodiff import quick_jit, reference_value_and_grad
from jaxbp.oracle.error import relative_error, to_float64
from jaxbp.oracle.proof import Proof, prove

__all__ = [
    "Oracle",
    "Proof",
    "directional",
    "float64",
    "prove",
    "quick_jit",
    "reference_value_and_grad",
    "relative_error",
    "to_float64",
    "traced",
]


LARGEST_BASIS = 4096


@contextmanager
def float64() -> Iterator[None]:
    """float64 is available, and dtypes promote, so that any code can be traced in it."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def traced(fn: Callable[..., Any], values: Sequence[Any]) -> Program:
    """`fn` as a program: traced with float64 values or, where it does not take them, with its own.

    Call it inside `float64()`. Code that fixes a dtype is widened when the program runs.
    """
    wide = [jnp.asarray(v, jnp.float64) for v in values]
    try:
        return read(fn, wide)
    except Exception:
        with jax.enable_x64(any(v.dtype == np.float64 for v in values)):
            return read(fn, values)


class Oracle:
    """The gradient of `target.plain` by autodiff in float64; lists of leaves and `dy` in, cotangents out.

    Reverse mode; where an operation has none (a `while_loop`), forward mode along every input; and where
    it cannot be differentiated at all (a kernel, a callback), differences. `method` says which.
    """

    def __init__(self, target: Target, optimise: bool = False):
        try:
            with float64():
                self.program = traced(target.plain, target.leaves)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"{target.name}: JAX cannot trace this function, so there is nothing to compare with; "
                f"give the same function in JAX as reference= ({type(error).__name__}: {first})"
            ) from error
        self.method = "reverse"
        self.compiled = (jax.jit if optimise else quick_jit)(self.gradient)

    def outputs(self, leaves: Sequence[Any]) -> list[Any]:
        return [y for y in self.program.run(leaves) if is_float(y)]

    def gradient(self, leaves: Sequence[Any], dy: Sequence[Any]) -> list[Any]:
        """Operation by operation when called as it is; `compiled` is the same under `jit`."""
        return {"reverse": self._reverse, "forward": self._forward, "differences": self._differences}[
            self.method
        ](list(leaves), list(dy))

    def settle(self, leaves: Sequence[Any], dy: Sequence[Any]) -> list[Any]:
        """The un-jitted gradient, by the first method that this function allows."""
        problems = []
        for method in ("reverse", "forward", "differences"):
            self.method = method
            size = sum(np.size(leaf) for leaf in leaves)
            if method != "reverse" and size > LARGEST_BASIS:
                break
            try:
                return self.gradient(leaves, dy)
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
        first = problems[0].strip().splitlines()[0]
        raise InputError(f"the function itself cannot be differentiated: {first}")

    def _reverse(self, leaves: list[Any], dy: list[Any]) -> list[Any]:
        return list(jax.vjp(self.outputs, leaves)[1](dy)[0])

    def _along(self, leaves: list[Any], dy: list[Any], slope: Callable[..., Any]) -> list[Any]:
        flat, unflatten = ravel_pytree(leaves)
        basis = jnp.eye(flat.size, dtype=flat.dtype)
        columns = jax.lax.map(lambda v: slope(leaves, dy, unflatten(v)), basis)
        return unflatten(columns)

    def _forward(self, leaves: list[Any], dy: list[Any]) -> list[Any]:
        def slope(leaves: list[Any], dy: list[Any], v: list[Any]) -> Any:
            tangents = jax.jvp(self.outputs, (leaves,), (v,))[1]
            return sum(jnp.vdot(c, t) for c, t in zip(dy, tangents, strict=True))

        return self._along(leaves, dy, slope)

    def _differences(self, leaves: list[Any], dy: list[Any]) -> list[Any]:
        return self._along(leaves, dy, lambda *args: directional(self.outputs, *args)[0])


def directional(
    fn: Callable[..., Any], leaves: list[Any], dy: list[Any], v: list[Any], step: float = 2e-3
) -> tuple[Any, Any]:
    """`(Σ dy · ∂fn/∂v, its uncertainty)` by central differences, two steps of Richardson's rule.

    Errors of order `h²` and `h⁴` cancel between the steps `h, h/2, h/4`; what the last two stages
    differ by is the uncertainty.
    """

    def value(t: Any) -> list[Any]:
        return fn([leaf + t * along for leaf, along in zip(leaves, v, strict=True)])

    def difference(h: float) -> Any:
        pairs = zip(dy, value(h), value(-h), strict=True)
        return sum((c * (up - down)).sum() for c, up, down in pairs) / (2 * h)

    d0, d1, d2 = (difference(step / 2**k) for k in range(3))
    e1, e2 = (4 * d1 - d0) / 3, (4 * d2 - d1) / 3
    best = (16 * e2 - e1) / 15
    return best, abs(best - e2)
