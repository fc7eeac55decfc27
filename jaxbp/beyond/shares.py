"""Layer-wise relevance: which inputs an output is made of, and how much of it each made.

A layer's output is a sum of contributions, `a_i = Σ_j z_ji + b_i` with `z_ji = x_j w_ji` (over the taps
of a convolution, too). Relevance `R_i` is handed down in their shares:

    R_j = Σ_i (z_ji + γ z_ji⁺) / (Σ_k (z_ki + γ z_ki⁺) + b_i + γ b_i⁺ ± ε) R_i        z⁺ = max(z, 0)

    ε    `γ = 0`: as they are; ε takes away where they cancel               Bach et al. 2015
    γ    what speaks for the output counts more: fewer signs that cancel    Montavon et al. 2019
    z⁺   `γ = ∞`: only what speaks for it                                    Montavon et al. 2017

Without biases and for `ε → 0` the shares add up to 1, and relevance is conserved: `Σ_j R_j = Σ_i R_i`. A
bias keeps its own share. With `x = x⁺ + x⁻` and `w = w⁺ + w⁻`, `z⁺ = x⁺ w⁺ + x⁻ w⁻`: two more products,
and the way back is the layer's own `pull`, of `R / (…)`, times `x`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxbp.beyond.rules import LayerRule, StraightThrough, own_fields
from jaxbp.layer import Eval, InputError, Layer, require_positive
from jaxbp.layers.conv import Conv
from jaxbp.layers.dense import Dense
from jaxbp.layers.dropout import Dropout
from jaxbp.layers.elementwise import Elementwise
from jaxbp.layers.pool import MaxPool
from jaxbp.layers.shape import Flatten


def _sum(arrays: Iterable[Array]) -> Array:
    first, *others = arrays
    return sum(others, start=first)


class _Relevance(Layer):
    """The way back of both; the layer whose `forward` and `pull` it takes stands behind it."""

    epsilon: float
    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
        require_positive(self.epsilon, f"{type(self).__name__}: epsilon")
        if not self.gamma >= 0:
            raise InputError(f"{type(self).__name__}: gamma must be at least 0, got {self.gamma!r}")

    def pull(self, params: Any, saved: Any, dy: Array) -> tuple[Array, Array]:
        x, dtype = saved
        w = params["w"].astype(x.dtype)
        b = params["b"].astype(x.dtype) if "b" in params else None
        halves = [(jnp.maximum(x, 0), jnp.maximum(w, 0)), (jnp.minimum(x, 0), jnp.minimum(w, 0))]
        ways = [(1.0, x, w, b)] if self.gamma < float("inf") else []  # (how much it counts, x, w, bias)
        if self.gamma > 0:
            how = min(self.gamma, 1.0) if self.gamma == float("inf") else self.gamma
            biases = [None if b is None else jnp.maximum(b, 0), None if b is None else jnp.zeros_like(b)]
            ways += [(how, *half, bias) for half, bias in zip(halves, biases, strict=True)]
        a = _sum(how * self._out(params, x, w, b).astype(dy.dtype) for how, x, w, b in ways)
        share = dy / (a + jnp.where(a >= 0, self.epsilon, -self.epsilon).astype(a.dtype))

        def back(x: Array, w: Array) -> Array:
            return x * super(_Relevance, self).pull({**params, "w": w}, (x, dtype), share)[0].astype(
                x.dtype
            )

        dx = _sum(how * back(x, w) for how, x, w, _ in ways)
        return dx.astype(dtype.value), share

    def _out(self, params: Any, x: Array, w: Array, b: Array | None) -> Array:
        own = {**params, "w": w} if b is None else {**params, "w": w, "b": b}
        return super().forward(own, x, Eval())[0]


@dataclass(frozen=True, repr=False)
class RelevanceDense(_Relevance, Dense):
    """`Dense`, which hands relevance down by shares (above). Its `gradient` means nothing."""

    epsilon: float = 1e-6
    gamma: float = 0.0


@dataclass(frozen=True, repr=False)
class RelevanceConv(_Relevance, Conv):
    """`Conv`, which hands relevance down by shares (above). Its `gradient` means nothing."""

    epsilon: float = 1e-6
    gamma: float = 0.0


def relevance(epsilon: float = 1e-6, gamma: float = 0.0) -> LayerRule:
    """The rule of LRP for a `Chain`: `net.backward(params, saved, R)[1]` is the input's relevance.

    `gamma` 0 is LRP-ε, infinity is z⁺, LRP-γ between them. `RelevanceDense` and `RelevanceConv` in place
    of `Dense` and `Conv`; activations pass relevance on as it is, a `MaxPool` to what was largest, a
    `Flatten` in place, a `Dropout` as it is (in evaluation). `R` is the logit to be explained, say, and 0
    at the others. Raises `InputError` for any other leaf: nobody guesses.
    """

    def rule(leaf: Layer) -> Layer:
        for kind, other in ((Dense, RelevanceDense), (Conv, RelevanceConv)):
            if type(leaf) is kind:
                return other(**own_fields(leaf), epsilon=epsilon, gamma=gamma)
        if isinstance(leaf, Elementwise):
            return StraightThrough(leaf)
        if isinstance(leaf, MaxPool | Flatten | Dropout):
            return leaf
        raise InputError(f"relevance: no rule is written for {leaf}")

    return rule


__all__ = ["RelevanceConv", "RelevanceDense", "relevance"]
