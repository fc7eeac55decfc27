"""Normalisation: subtract a mean, divide by a deviation, and mind that both depend on every entry.

All of them standardise groups of `N` entries and then scale and shift each feature `c` (the last axis):

    μ = 1/N Σ_j x_j,   v = 1/N Σ_j (x_j - μ)²,   r = 1/√(v + ε),   x̂_j = (x_j - μ) r,   y = γ_c x̂ + β_c

They differ only in which entries share a mean: the features of one position (`LayerNorm`), the features
of a group over all positions of an example (`GroupNorm`), one feature over all examples and positions
(`BatchNorm`). So the derivation is one. With `δ = ∂L/∂y`, `g = ∂L/∂x̂ = γ δ`, and `⟨·⟩` for the mean over
a group, three paths lead from `x_j` to `L`:

    its own entry    x_j → x̂_j                   r g_j
    the mean         x_j → μ → every x̂_i         ∂μ/∂x_j = 1/N,           ∂L/∂μ = -r Σ_i g_i
    the variance     x_j → v → every x̂_i         ∂v/∂x_j = 2(x_j - μ)/N,  ∂L/∂v = -½ r² Σ_i g_i x̂_i

(`μ` also stands in `v`, but `∂v/∂μ = -2⟨x - μ⟩ = 0`.) Their sum, with `x_j - μ = x̂_j / r`:

    ∂L/∂x_j = r (g_j - ⟨g⟩ - x̂_j ⟨g x̂⟩)         pull
    ∂L/∂γ_c = Σ δ x̂,   ∂L/∂β_c = Σ δ             gradient: sums over everything that shares γ_c, β_c

Dropping the second or third path is the classic mistake; errors `g` that are all equal hide it. What is
kept is `x` (which the layer before often keeps anyway) with `μ` and `r`; `x̂` is computed again from
them, which costs less than a second array of the size of `x`. Statistics run in float32 at least.

Under a large offset (a row of 768 entries near 12345, say) the rounding of `μ` alone is as large as the
deviation. So `μ` is kept in two parts, `μ = a + ⟨x - a⟩` with one entry `a` of the group, and both are
subtracted in turn: `x - a` is exact where offset ≫ deviation, and never large, for no entry of a group
lies further than `√N` deviations from its mean (`N v = Σ_j (x_j - μ)² ≥ (a - μ)²`). This costs one more
subtraction and no pass over `x`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxbp.layer import (
    Eval,
    InputError,
    Layer,
    Mode,
    PyTree,
    Static,
    is_training,
    require_floating,
    require_params,
    require_positive,
    require_whole,
)
from jaxbp.precision import Precision, PrecisionField, wide

Parts = tuple[Array, ...]  # of a mean: their sum


def _check_epsilon(layer: Any) -> None:
    require_positive(layer.epsilon, f"{type(layer).__name__}: epsilon")


def _sum_to_features(z: Array, like: Array) -> Array:
    """`Σ z` over all axes but the last, in the dtype of the parameter `like`."""
    return jnp.sum(z, axis=tuple(range(z.ndim - 1))).astype(like.dtype)


def _centred(x: Array, mu: Parts) -> Array:
    """`x - μ`, part by part: added up, the parts would lose what they are there for."""
    for part in mu:
        x = x - part
    return x


class _Norm(Layer):
    """`y = γ x̂ + β`; a subclass says over which entries the mean goes."""

    epsilon: float
    precision: Precision
    names: ClassVar[tuple[str, ...]] = ("scale", "offset")

    @abstractmethod
    def mean(self, z: Array) -> Array:
        """`⟨z⟩`: the mean over the group of every entry, in a shape that broadcasts to that of `z`."""

    @abstractmethod
    def first(self, z: Array) -> Array:
        """One entry of every group, in the shape of `mean(z)`."""

    def init(self, key: Array, x: PyTree) -> PyTree:
        self._check(x)
        dtype = self.precision.params or x.dtype
        return {"scale": jnp.ones(x.shape[-1], dtype), "offset": jnp.zeros(x.shape[-1], dtype)}

    def forward(
        self, params: PyTree, x: Float[Array, "*dims features"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims features"], PyTree]:
        self._check(x, params)
        mu, var = self._statistics(x)
        saved = (x, mu, lax.rsqrt(var + self.epsilon))
        return self._affine(params, *saved), saved

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims features"]
    ) -> tuple[Float[Array, "*dims features"], PyTree]:
        x, mu, r = saved
        x_hat = self._standard(x, mu, r)
        delta = dy.astype(x_hat.dtype)
        g = delta * self._spread(params["scale"], delta)
        dx = r * (g - self.mean(g) - x_hat * self.mean(g * x_hat))
        return dx.astype(x.dtype), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*dims features"]) -> PyTree:
        x_hat = self._standard(*saved)
        return {
            "scale": _sum_to_features(delta * x_hat, params["scale"]),
            "offset": _sum_to_features(delta, params["offset"]),
        }

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        """Both are sums over rows, of `δ x̂` and of `δ`: biases of which one meets another error."""
        return {"scale": (None, delta * self._standard(*saved[:3])), "offset": (None, delta)}

    def _statistics(self, x: Array) -> tuple[Parts, Array]:
        """`μ` and `v`, in two passes: the difference `⟨x²⟩ - μ²` would lose its digits."""
        x = x.astype(self._compute(x))
        a = self.first(x)
        mu = (a, self.mean(x - a))
        return mu, self.mean(jnp.square(_centred(x, mu)))

    def _affine(self, params: PyTree, x: Array, mu: Parts, r: Array) -> Array:
        x_hat = self._standard(x, mu, r)
        y = x_hat * self._spread(params["scale"], x_hat) + self._spread(params["offset"], x_hat)
        return y.astype(self.precision.output or x.dtype)

    def _standard(self, x: Array, mu: Parts, r: Array) -> Array:
        return _centred(x.astype(r.dtype), mu) * r

    def _spread(self, feature: Array, like: Array) -> Array:
        return jnp.broadcast_to(feature.astype(like.dtype), like.shape)

    def _compute(self, x: Array) -> PyTree:
        return wide(self.precision.compute or x.dtype)

    def _check(self, x: PyTree, params: PyTree = None) -> None:
        require_floating(x, f"{self}: x")
        self._check_rank(x)
        if params is not None:
            require_params(self, params, *self.names)
        if params is not None and params["scale"].shape != (x.shape[-1],):
            raise InputError(
                f"{self}: expected {params['scale'].shape[0]} features in the last axis of x, "
                f"got {x.shape[-1]} (x has shape {list(x.shape)})"
            )

    def _check_rank(self, x: PyTree, least: int = 1) -> None:
        if len(x.shape) < least or 0 in x.shape:
            raise InputError(
                f"{self}: expected x with at least {least} axes, none of them empty, "
                f"got shape {list(x.shape)}"
            )


@dataclass(frozen=True, repr=False)
class LayerNorm(_Norm):
    """`y_c = γ_c (x_c - μ)/√(v + ε) + β_c`, mean and variance over the features of one position.

    `[..., features] -> [..., features]`; parameters `scale` (γ, starts at 1) and `offset` (β, at 0) of
    `[features]`. Derivation above: `∂L/∂x = r (g - ⟨g⟩ - x̂ ⟨g x̂⟩)` with `g = γ δ` and means over the
    last axis. Keeps `x`, and `μ` and `r` of `[..., 1]`. With a single feature `y = β` and `∂L/∂x = 0`.

    Raises `InputError` for an integer or empty `x`, a scalar, a wrong feature count, and for `ε ≤ 0`.
    Source: Ba, Kiros and Hinton 2016.
    """

    epsilon: float = 1e-5
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        _check_epsilon(self)

    def mean(self, z: Array) -> Array:
        return jnp.mean(z, axis=-1, keepdims=True)

    def first(self, z: Array) -> Array:
        return z[..., :1]


@dataclass(frozen=True, repr=False)
class GroupNorm(_Norm):
    """LayerNorm's formula, with statistics over all positions of an example and a group of features.

    `[batch, ..., features] -> [batch, ..., features]`: the features, in their order, form `groups`
    groups of `features/groups`; the first axis is the examples', and every axis between it and the last
    is a position's. `groups=1` normalises an example whole, `groups=features` each feature of it alone
    (InstanceNorm). Parameters `scale` and `offset` of `[features]`.

    Derivation above, with means over positions and the group's features. Keeps `x`, and `μ` and `r` of
    `[batch, 1, ..., features]`.

    Raises `InputError` where `groups` does not divide the features, and as `LayerNorm` does.
    Source: Wu and He 2018.
    """

    groups: int
    epsilon: float = 1e-5
    precision: Any = PrecisionField()

    def __post_init__(self) -> None:
        _check_epsilon(self)
        require_whole("GroupNorm", groups=self.groups)

    def mean(self, z: Array) -> Array:
        batch, *positions, features = z.shape
        size = features // self.groups
        grouped = z.reshape(batch, prod(positions), self.groups, size)
        means = jnp.mean(grouped, axis=(1, 3))
        return jnp.repeat(means, size, axis=1).reshape(batch, *(1 for _ in positions), features)

    def first(self, z: Array) -> Array:
        size = z.shape[-1] // self.groups
        ends = (z.shape[0], *(1 for _ in z.shape[1:-1]), z.shape[-1])
        entries = lax.slice(z, (0,) * z.ndim, ends, (*(1 for _ in z.shape[:-1]), size))
        return jnp.repeat(entries, size, axis=-1)

    def _check_rank(self, x: PyTree, least: int = 2) -> None:
        super()._check_rank(x, least)
        if x.shape[-1] % self.groups:
            raise InputError(
                f"{self}: expected a number of features that {self.groups} groups divide, "
                f"got {x.shape[-1]} (x has shape {list(x.shape)})"
            )


@dataclass(frozen=True, repr=False)
class BatchNorm(_Norm):
    """LayerNorm's formula, each feature over all examples and positions: `[..., features]` as it is.

    Parameters `scale`, `offset`, and the running statistics `mean` and `var`, all `[features]`.

    Training. `μ` and `v` are those of the batch, and the derivation above holds with means over every
    axis but the last. `mean` and `var` are not read, so their gradient is exactly 0;
    `update_statistics` moves them after the step:

        mean := m · mean + (1 - m) μ,    var := m · var + (1 - m) v,    m = momentum

    (`v` divides by `N`, as the forward pass and Flax do; torch keeps `N - 1`, and calls `1 - m` its
    momentum.) `trainable` marks them `False`, so that no optimizer decays them. One entry a feature
    (`N = 1`, a batch of one row) has a mean and no variance: `mean` moves, `var` stays. Such a batch
    also learns nothing, since `y = β` and `∂L/∂x = 0`, so `smallest_batch` asks for two examples (torch
    raises an error).

    Across devices. Where the batch is sharded under `jit`, every mean is over the whole of it, forward
    and back, and nothing is to be done. Inside `shard_map`, `pmap` or a named `vmap`, a layer sees its
    own share only; give it the name (or names) of those axes as `axis_name`, and its means go over all
    of them. `∂L/∂γ`, `∂L/∂β` are then sums over the share, to be added up like any other parameter's.

    Evaluation. `μ = mean`, `v = var` are parameters, and only the first of the three paths is left:

        ∂L/∂x = r g,   ∂L/∂mean_c = -r Σ g,   ∂L/∂var_c = -½ r² Σ g x̂

    These are the true derivatives of what is computed, so they are not 0; `make_step` leaves the
    statistics alone all the same. Keeps `x`, and `μ` and `r` of `[1, ..., 1, features]`, in training `v`.

    It mixes examples: per-example gradients of a net in training mode are not defined. Raises
    `InputError` as `LayerNorm` does, and for a momentum outside [0, 1]. Source: Ioffe and Szegedy 2015.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | tuple[str, ...] | None = None
    precision: Any = PrecisionField()

    names: ClassVar[tuple[str, ...]] = ("scale", "offset", "mean", "var")
    fewest_examples: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_epsilon(self)
        if not isinstance(self.momentum, Real) or not 0 <= self.momentum <= 1:
            raise InputError(f"BatchNorm: momentum must be in [0, 1], got {self.momentum!r}")
        if isinstance(self.axis_name, list):  # would not be hashable
            object.__setattr__(self, "axis_name", tuple(self.axis_name))

    def mean(self, z: Array) -> Array:
        return self._shared(jnp.mean(z, axis=tuple(range(z.ndim - 1)), keepdims=True))

    def first(self, z: Array) -> Array:
        """Across devices the mean of the first entries: all subtract the same."""
        return self._shared(z[(slice(1),) * (z.ndim - 1)])

    def _shared(self, own: Array) -> Array:
        return own if self.axis_name is None else lax.pmean(own, self.axis_name)

    def init(self, key: Array, x: PyTree) -> PyTree:
        params = super().init(key, x)
        shape, dtype = params["scale"].shape, wide(params["scale"].dtype)
        return {**params, "mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}

    def forward(
        self, params: PyTree, x: Float[Array, "*dims features"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims features"], PyTree]:
        self._check(x, params)
        train = is_training(mode)
        if train:
            mu, var = self._statistics(x)
        else:
            shape, dtype = (1,) * (x.ndim - 1) + x.shape[-1:], self._compute(x)
            mean, var = (params[name].astype(dtype).reshape(shape) for name in ("mean", "var"))
            mu = (mean,)
        r = lax.rsqrt(var + self.epsilon)
        batch = (var if self._entries(x) > 1 else None) if train else Static("running")
        return self._affine(params, x, mu, r), (x, mu, r, batch)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims features"]
    ) -> tuple[Float[Array, "*dims features"], PyTree]:
        x, mu, r, var = saved
        if not isinstance(var, Static):
            return super().pull(params, (x, mu, r), dy)
        delta = dy.astype(r.dtype)
        return (r * delta * self._spread(params["scale"], delta)).astype(x.dtype), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*dims features"]) -> PyTree:
        x, mu, r, var = saved
        grads = super().gradient(params, (x, mu, r), delta)
        if not isinstance(var, Static):
            return {**grads, "mean": jnp.zeros_like(params["mean"]), "var": jnp.zeros_like(params["var"])}
        g = delta * self._spread(params["scale"], delta)
        return {
            **grads,
            "mean": _sum_to_features(-r * g, params["mean"]),
            "var": _sum_to_features(-0.5 * r * r * g * self._standard(x, mu, r), params["var"]),
        }

    def gradient_of_each(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        if not isinstance(saved[3], Static):
            raise InputError(f"{self}: in training every example's gradient depends on all the others")
        x, *running = saved  # of which there is one for all examples
        each = jax.vmap(self.gradient, (None, (0, None, None, None), 0))
        return each(params, (x[:, None], *running), delta[:, None])

    def trainable(self, params: PyTree) -> PyTree:
        return {name: name in ("scale", "offset") for name in params}

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        _, mu, _, var = saved
        if isinstance(var, Static):
            return params
        near, rest = mu

        def move(old: Array, new: Array) -> Array:
            moved = self.momentum * old + (1 - self.momentum) * new.reshape(old.shape).astype(old.dtype)
            return moved.astype(old.dtype)

        moved = {**params, "mean": move(params["mean"], near + rest)}
        return moved if var is None else {**moved, "var": move(params["var"], var)}

    def _entries(self, x: PyTree) -> int:
        """`N`: over how many entries each mean goes."""
        devices = 1 if self.axis_name is None else lax.psum(1, self.axis_name)
        return devices * prod(x.shape[:-1])


@dataclass(frozen=True, repr=False)
class RMSNorm(_Norm):
    """`y_c = γ_c x_c r`, `r = 1/√(⟨x²⟩ + ε)`, the mean over the features of one position.

    `[..., features] -> [..., features]`; parameter `scale` (γ) of `[features]`, no offset. Nothing is
    subtracted, so two paths lead from `x_j` to `L`, with `x̂ = x r` and `g = γ δ`:

        its own entry     r g_j
        the mean square   ∂⟨x²⟩/∂x_j = 2x_j/N,   ∂L/∂⟨x²⟩ = -½ r² Σ_i g_i x̂_i
        ∂L/∂x_j = r (g_j - x̂_j ⟨g x̂⟩),   ∂L/∂γ_c = Σ δ x̂

    Keeps `x`, and `r` of `[..., 1]`. Where `g` is parallel to `x` (always so with a single feature) the
    two paths cancel but for a share of `ε r²`, and `∂L/∂x`, then nearly 0, has few correct digits.

    Raises `InputError` as `LayerNorm` does. Source: Zhang and Sennrich 2019.
    """

    epsilon: float = 1e-5
    precision: Any = PrecisionField()

    names: ClassVar[tuple[str, ...]] = ("scale",)

    def __post_init__(self) -> None:
        _check_epsilon(self)

    def mean(self, z: Array) -> Array:
        return jnp.mean(z, axis=-1, keepdims=True)

    def first(self, z: Array) -> Array:
        return z[..., :1]

    def init(self, key: Array, x: PyTree) -> PyTree:
        return {"scale": super().init(key, x)["scale"]}

    def forward(
        self, params: PyTree, x: Float[Array, "*dims features"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims features"], PyTree]:
        self._check(x, params)
        wide_x = x.astype(self._compute(x))
        r = lax.rsqrt(self.mean(jnp.square(wide_x)) + self.epsilon)
        y = wide_x * r * self._spread(params["scale"], wide_x)
        return y.astype(self.precision.output or x.dtype), (x, r)

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims features"]
    ) -> tuple[Float[Array, "*dims features"], PyTree]:
        x, r = saved
        x_hat, delta = x.astype(r.dtype) * r, dy.astype(r.dtype)
        g = delta * self._spread(params["scale"], delta)
        return (r * (g - x_hat * self.mean(g * x_hat))).astype(x.dtype), delta

    def gradient(self, params: PyTree, saved: PyTree, delta: Float[Array, "*dims features"]) -> PyTree:
        x, r = saved
        return {"scale": _sum_to_features(delta * (x.astype(r.dtype) * r), params["scale"])}

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        x, r = saved
        return {"scale": (None, delta * (x.astype(r.dtype) * r))}
