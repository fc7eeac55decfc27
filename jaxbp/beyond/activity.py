"""What passes through a network, layer by layer, in a few numbers: is anything dead, or exploding?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbp.beyond.book import owner_of
from jaxbp.layer import Eval, InputError, Layer, Mode, Part, PyTree, add_errors, rebuild
from jaxbp.losses import Loss
from jaxbp.precision import wide
from jaxbp.record import each_passed, passed, recorded

NOTHING = np.float32(0)
DECADES = (-8, 4)  # of a histogram: from 1e-8 to 1e4, what is outside in the first and the last bin


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerStatistics:
    """Of a layer's output `h` and its error `δ = ∂L/∂h` over a batch; copies in a `Stack` come first.

    `activation` and `error` are the root mean squares, `largest` is `max |h|`. `dead` is the share of
    units (the last axis) with `h = 0` at every row, `silent` of those with `δ = 0` at every row, of which
    nothing is learned. `gradient` is the norm of the parameters' gradient. `histogram` counts
    `log₁₀ |h|` and `log₁₀ |δ|`, in bins of equal width from -8 to 4.
    """

    activation: Float[Array, "*copies"]
    error: Float[Array, "*copies"]
    largest: Float[Array, "*copies"]
    dead: Float[Array, "*copies"]
    silent: Float[Array, "*copies"]
    gradient: Float[Array, "*copies"]
    histogram: tuple[Array, Array]


def layer_statistics(net: Layer, loss: Loss, bins: int = 0) -> Callable[..., Any]:
    """`fn(params, x, y, mode=Eval()) -> (value, grads, {path: LayerStatistics})`, from one walk.

    A step's own value and gradient, with numbers about every layer that the walk comes past, made where
    it is and not kept: it can stay on while a network trains. `bins` of the histograms, 0 for none. Any
    network, also where examples depend on each other; in float32 at least. Errors are those of `value`
    (of a mean, `1/n` of an example's).
    """
    if bins < 0:
        raise InputError(f"layer_statistics: expected a number of bins, got {bins}")
    same = recorded(net)

    def gather(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> Any:
        found = passed(layer, params, saved, delta)
        return found.gradient, _measured(found.y, found.dy, found.gradient, bins)

    def fn(params: PyTree, x: PyTree, y: Any, mode: Mode = Eval()) -> Any:
        prediction, saved = same.forward(params, x, mode)
        value, kept = loss.forward(prediction, y)
        gathered, _ = same.backward(params, saved, loss.backward(kept), gather)
        parts = each_passed(net, params, gathered)
        return value, _gradients(net, params, parts), {p.path: p.gathered[1] for p in parts}

    return fn


def _gradients(net: Layer, params: PyTree, parts: list[Part]) -> PyTree:
    trees = [part.gathered[0] for part in parts]
    for i, part in enumerate(parts):
        if part.shared:
            owner = parts.index(owner_of(part, parts))
            trees[owner] = add_errors(trees[owner], trees[i])
    return rebuild(net, params, trees)


def _measured(h: PyTree, error: PyTree, gradient: PyTree, bins: int) -> LayerStatistics:
    h, d, g = (_floating(tree) for tree in (h, error, gradient))
    return LayerStatistics(
        activation=_rms(h),
        error=_rms(d),
        largest=_largest(h),
        dead=_zero_units(h),
        silent=_zero_units(d),
        gradient=jnp.sqrt(jnp.asarray(sum((_squares(a) for a in g), start=NOTHING))),
        histogram=(_histogram(h, bins), _histogram(d, bins)),
    )


def _floating(tree: PyTree) -> list[Array]:
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating) and a.ndim]


def _squares(a: Array) -> Array:
    return jnp.sum(jnp.square(a.astype(wide(a.dtype)))).astype(jnp.float32)


def _rms(arrays: list[Array]) -> Array:
    count = max(sum(a.size for a in arrays), 1)
    return jnp.sqrt(sum((_squares(a) for a in arrays), start=NOTHING) / np.float32(count))


def _largest(arrays: list[Array]) -> Array:
    found = [jnp.max(jnp.abs(a), initial=0).astype(jnp.float32) for a in arrays]
    return jnp.max(jnp.stack(found)) if found else jnp.float32(0)


def _zero_units(arrays: list[Array]) -> Array:
    zero = [jnp.all(a.reshape(-1, a.shape[-1]) == 0, axis=0) for a in arrays]
    return jnp.mean(jnp.concatenate(zero).astype(jnp.float32)) if zero else jnp.float32(0)


def _histogram(arrays: list[Array], bins: int) -> Array:
    counts = jnp.zeros(bins, jnp.int32)
    if not bins:
        return counts
    low, high = DECADES
    for a in arrays:
        size = jnp.log10(jnp.maximum(jnp.abs(a.astype(jnp.float32)).reshape(-1), 1e-30))
        which = jnp.floor((size - low) / (high - low) * bins).astype(jnp.int32)
        counts = counts.at[jnp.clip(which, 0, bins - 1)].add(1)
    return counts
