"""Elementwise layers: one table of value, derivative, and what the derivative is written in.

For `h = g(a)` taken entry by entry the Jacobian is diagonal, so the error passes each entry alone:

    ∂L/∂a_i = ∂L/∂h_i · g'(a_i)

Wherever `g'` can be written in the *output* `h`, only `h` is kept: the next layer keeps `h` anyway, so
the activation costs no memory of its own. Otherwise the input `a` is kept. Ties and kinks are decided
as `jax.nn` decides them: `ReLU'(0) = 0`, `LeakyReLU'(0) = 1`, `ELU'(0) = α`.

Narrow dtypes (bfloat16, float16) are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf
from jaxtyping import Array, Float

from jaxbp.layer import Eval, Layer, Mode, PyTree, require_floating, require_positive
from jaxbp.precision import wide

SQRT_2_OVER_PI = 0.7978845608028654
SQRT_HALF = 0.7071067811865476
FAR = 1000.0  # beyond ±FAR, SiLU and GELU are their limits 0 and a, in float64 too; a³ · 0 would be NaN
ONE_OVER_SQRT_2PI = 0.3989422804014327


class Rule(NamedTuple):
    """`value(a, **hyper) -> h` and `pull(saved, dh, **hyper) -> da`; `saves` is "h" or "a"."""

    value: Callable[..., Array]
    saves: str
    pull: Callable[..., Array]


def _leaky_pull(h: Array, d: Array, negative_slope: float) -> Array:
    return jnp.where(h >= 0, d, negative_slope * d)


def _elu_pull(h: Array, d: Array, alpha: float) -> Array:
    return jnp.where(h > 0, d, d * (h + alpha))


def _silu(a: Array) -> Array:
    return jax.nn.silu(jnp.maximum(a, -FAR))


def _gelu(a: Array, approximate: bool) -> Array:
    return jax.nn.gelu(jnp.maximum(a, -FAR), approximate)


def _silu_pull(a: Array, d: Array) -> Array:
    a = jnp.clip(a, -FAR, FAR)
    s = jax.nn.sigmoid(a)
    return d * s * (1 + a * (1 - s))


def _gelu_pull(a: Array, d: Array, approximate: bool) -> Array:
    a = jnp.clip(a, -FAR, FAR)
    if approximate:  # h = a/2 (1 + tanh u),  u = √(2/π) (a + 0.044715 a³)
        t = jnp.tanh(SQRT_2_OVER_PI * (a + 0.044715 * a * a * a))
        du = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * a * a)
        return d * 0.5 * ((1 + t) + a * (1 - t) * (1 + t) * du)
    density = ONE_OVER_SQRT_2PI * jnp.exp(-0.5 * a * a)  # h = a Φ(a),  h' = Φ(a) + a φ(a)
    return d * (0.5 * (1 + erf(a * SQRT_HALF)) + a * density)


# fmt: off
TABLE: dict[str, Rule] = {
    #                 h = g(a)           kept  ∂L/∂a, with d = ∂L/∂h
    "Identity":  Rule(lambda a: a,       "",   lambda _, d: d),
    "Sigmoid":   Rule(jax.nn.sigmoid,    "h",  lambda h, d: d * h * (1 - h)),
    "Tanh":      Rule(jnp.tanh,          "h",  lambda h, d: d * (1 - h) * (1 + h)),
    "ReLU":      Rule(jax.nn.relu,       "h",  lambda h, d: jnp.where(h > 0, d, 0)),
    "LeakyReLU": Rule(jax.nn.leaky_relu, "h",  _leaky_pull),
    "ELU":       Rule(jax.nn.elu,        "h",  _elu_pull),
    "Softplus":  Rule(jax.nn.softplus,   "h",  lambda h, d: -d * jnp.expm1(-h)),
    "SiLU":      Rule(_silu,             "a",  _silu_pull),
    "GELU":      Rule(_gelu,             "a",  _gelu_pull),
}
# fmt: on


class Elementwise(Layer):
    """A row of `TABLE` as a layer; the subclass's fields are the row's hyper-parameters."""

    rule: ClassVar[Rule]

    def forward(
        self, params: PyTree, x: Float[Array, "*dims"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        require_floating(x, "x")
        rule, a = self.rule, x
        h = rule.value(a.astype(wide(a.dtype)), **asdict(self)).astype(a.dtype)  # pyright: ignore[reportArgumentType]
        return h, {"h": h, "a": a, "": ()}[rule.saves]

    def pull(
        self, params: PyTree, saved: PyTree, dy: Float[Array, "*dims"]
    ) -> tuple[Float[Array, "*dims"], PyTree]:
        widened = jax.tree.map(lambda s: s.astype(wide(s.dtype)), saved)
        da = self.rule.pull(widened, dy.astype(wide(dy.dtype)), **asdict(self))  # pyright: ignore[reportArgumentType]
        return da.astype(dy.dtype), ()


@dataclass(frozen=True, repr=False)
class Identity(Elementwise):
    """`h = a`, `∂h/∂a = 1`. Any shape; nothing is kept."""

    rule = TABLE["Identity"]


@dataclass(frozen=True, repr=False)
class Sigmoid(Elementwise):
    """`h = σ(a) = 1/(1 + e⁻ᵃ)`, `∂h/∂a = h(1 - h)`. Any shape; keeps `h`.

    By the quotient rule `σ' = e⁻ᵃ/(1 + e⁻ᵃ)²`, which is `σ · (1 - σ)`. The notes print `h₁₃(1 - h₁₃)`
    as 0.0979; it is 0.0972.
    """

    rule = TABLE["Sigmoid"]


@dataclass(frozen=True, repr=False)
class Tanh(Elementwise):
    """`h = tanh a`, `∂h/∂a = 1 - h² = (1 - h)(1 + h)`. Any shape; keeps `h`.

    The factored form does not cancel where `|h|` is near 1.
    """

    rule = TABLE["Tanh"]


@dataclass(frozen=True, repr=False)
class ReLU(Elementwise):
    """`h = max(a, 0)`, `∂h/∂a = [h > 0]`; at the kink `a = 0` it is 0. Any shape; keeps `h`."""

    rule = TABLE["ReLU"]


@dataclass(frozen=True, repr=False)
class LeakyReLU(Elementwise):
    """`h = a` where `a ≥ 0`, else `s a`; `∂h/∂a` is 1 or `s`, and 1 at `a = 0`; `s = negative_slope`.

    `s > 0` keeps the sign of `a` in `h`, so that `h` alone is kept; use `ReLU` for 0.
    """

    rule = TABLE["LeakyReLU"]

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        require_positive(self.negative_slope, "LeakyReLU: negative_slope", " (for 0 use ReLU)")


@dataclass(frozen=True, repr=False)
class ELU(Elementwise):
    """`h = a` where `a > 0`, else `α(eᵃ - 1)`; `∂h/∂a` is 1, else `αeᵃ = h + α` (so `α` at `a = 0`).

    Keeps `h`. `α > 0` is required, for the sign of `a` must be seen in `h`. Source: Clevert et al. 2016.
    """

    rule = TABLE["ELU"]

    alpha: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self.alpha, "ELU: alpha")


@dataclass(frozen=True, repr=False)
class Softplus(Elementwise):
    """`h = log(1 + eᵃ)`, `∂h/∂a = σ(a) = 1 - e⁻ʰ`. Any shape; keeps `h`.

    `e⁻ʰ = 1/(1 + eᵃ) = 1 - σ(a)`; written `-expm1(-h)`, it keeps its digits where `h` is small.
    """

    rule = TABLE["Softplus"]


@dataclass(frozen=True, repr=False)
class SiLU(Elementwise):
    """`h = a σ(a)`, `∂h/∂a = σ(a)(1 + a(1 - σ(a)))`, the product rule. Any shape.

    `h` does not determine `a` (the function is not monotone), so `a` is kept. Also called swish.
    """

    rule = TABLE["SiLU"]


@dataclass(frozen=True, repr=False)
class GELU(Elementwise):
    """`h = a Φ(a)`, `∂h/∂a = Φ(a) + a φ(a)`, with the normal distribution's `Φ` and density `φ`.

    `approximate=True` (the default, as in `jax.nn.gelu`) uses `Φ(a) ≈ (1 + tanh u)/2` with
    `u = √(2/π)(a + 0.044715 a³)`, and then its own derivative, not that of the exact form:
    `(1 + t)/2 + a/2 (1 - t²) u'`, `t = tanh u`. Keeps `a`. Source: Hendrycks and Gimpel 2016.
    """

    rule = TABLE["GELU"]

    approximate: bool = True
