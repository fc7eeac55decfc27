"""The oracle: the same forward pass, differentiated by `jax.grad` in float64 and without `jit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxbp.check.operations import is_float
from jaxbp.check.program import Program, read
from jaxbp.check.target import Target
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree
from jaxbp.losses import Loss


def reference_value_and_grad(net: Layer, loss: Loss) -> Any:
    """`fn(params, x, y, mode=Eval()) -> (value, grads)` with `grads` by `jax.grad`."""

    def value(params: PyTree, x: PyTree, y: Any, mode: Mode) -> Any:
        return loss.forward(net.forward(params, x, mode)[0], y)[0]

    fn = jax.value_and_grad(value, allow_int=True)

    def call(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Any:
        return fn(params, x, y, mode)

    return call


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


@dataclass(frozen=True)
class Proof:
    """The error of every parameter's gradient against the oracle's, by pytree path."""

    errors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The path with the largest error, and that error; NaN counts as largest."""
        path = max(self.errors, key=lambda p: (np.isnan(self.errors[p]), self.errors[p]))
        return path, self.errors[path]


DOUBTFUL = 1e-4  # relative to a gradient's largest entry; float32 gradients agree to about 1e-6


def prove(net: Layer, loss: Loss, params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Proof:
    """Compare the compiled hand-written gradient with un-jitted float64 `jax.grad`, leaf by leaf.

    `mode` is the same for both, so that both drop the same units. A gradient whose terms cancel (that of
    a bias where the errors add up to zero) is rounding and no more: where `jax.grad` in the working
    dtype is as far off as the hand-written one, the error is taken relative to the size at which that
    noise would be one rounding.
    """
    from jaxbp.train.step import value_and_grad

    grads = jax.jit(value_and_grad(net, loss))(params, x, y, mode)[1]
    with jax.enable_x64(True):
        wide = to_float64((params, x, y))
        reference = reference_value_and_grad(net, loss)(*wide, mode)[1]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(grads)]
    pairs = list(zip(jax.tree.leaves(grads), jax.tree.leaves(reference), strict=True))
    errors = {path: relative_error(g, r) for path, (g, r) in zip(paths, pairs, strict=True)}
    if not all(error <= DOUBTFUL for error in errors.values()):
        working = jax.jit(reference_value_and_grad(net, loss))(params, x, y, mode)[1]
        for path, (g, r), w in zip(paths, pairs, jax.tree.leaves(working), strict=True):
            off, noise = (float(np.max(np.abs(np.float64(v) - np.float64(r)))) for v in (g, w))
            if errors[path] > DOUBTFUL and off <= 20 * noise:
                errors[path] = relative_error(g, r, floor=noise / float(jnp.finfo(w.dtype).eps))
    return Proof(errors)


# --- the oracle of the gradient checker ---------------------------------------------------------------

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


def quick_jit(fn: Callable[..., Any]) -> Any:
    """`jax.jit`, compiled without XLA's expensive optimisations: such a program is called a few times."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=options if jax.default_backend() == "cpu" else None)


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
                f"{target.name}: JAX cannot trace this function, so there is nothing to compare with: "
                f"{type(error).__name__}: {first}"
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
