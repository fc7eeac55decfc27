"""Other ways back: layers whose forward pass is the usual one, and whose error travels by another rule.

`map_leaves(rule, net)` puts them into a network that is there already; parameters stay what they are
unless said otherwise. What a walk through them carries is then no derivative, so `check_gradients`
rightly objects, and `gradient` and `gather` make of it what they make of any `δ`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.compose import Chain, chain_nested, chain_row
from jaxbp.layer import (
    Eval,
    Gather,
    InputError,
    Layer,
    Mode,
    Part,
    PyTree,
    inside,
    require_floating,
    require_params,
    require_positive,
)
from jaxbp.layers.dense import Dense, initializer
from jaxbp.layers.elementwise import Elementwise, ReLU, Rule
from jaxbp.precision import matmul, wide

LayerRule = Callable[[Layer], Layer]


def in_place_of(kind: type[Layer], make: LayerRule) -> LayerRule:
    """A rule for `map_leaves`: `make(leaf)` in place of every leaf of a `kind`, the others as they are.

    `map_leaves(in_place_of(Tanh, StraightThrough), net)`.
    """
    return lambda leaf: make(leaf) if isinstance(leaf, kind) else leaf


# --- learning without the transposed weights ----------------------------------------------------------


@dataclass(frozen=True, repr=False)
class FeedbackAlignment(Dense):
    """`Dense`, whose error goes back through a fixed random matrix instead of through its weights.

        y = x w + b,    ∂L/∂w = xᵀ δ,    ∂L/∂b = Σ δ        as in `Dense`
        dx = δ B                                            in place of δ wᵀ

    `B: [features, in]` is drawn like `w` and never trained. It is a parameter, `feedback`, so that every
    layer and every copy in a `Stack` has one of its own and a checkpoint keeps it; its gradient is 0
    and `trainable` says no. (So the network needs an `init` of its own.) The weights turn until `δ B` is
    within 90° of the true error. Source: Lillicrap et al. 2016.
    """

    def init(self, key: Any, x: Any) -> Any:
        own, other = jax.random.split(key)
        params = super().init(own, x)
        w = params["w"]
        return {**params, "feedback": initializer(self.initializer)(other, w.shape, w.dtype).T}

    def pull(
        self, params: Any, saved: Any, dy: Float[Array, "*batch out"]
    ) -> tuple[Float[Array, "*batch in"], Float[Array, "*batch out"]]:
        require_params(self, params, "feedback")
        return super().pull({**params, "w": params["feedback"].T}, saved, dy)

    def gradient(self, params: Any, saved: Any, delta: Float[Array, "*batch out"]) -> Any:
        found = super().gradient(params, saved, delta)
        return {**found, "feedback": jnp.zeros_like(params["feedback"])}

    def trainable(self, params: Any) -> Any:
        return {name: name != "feedback" for name in params}


def feedback_alignment(leaf: Layer) -> Layer:
    """The rule: `FeedbackAlignment` in place of every `Dense`."""
    return FeedbackAlignment(**own_fields(leaf)) if type(leaf) is Dense else leaf


@dataclass(frozen=True, repr=False, init=False)
class DirectFeedback(Chain):
    """`Chain`, in which every layer with parameters hears of the error at the end, and of no other.

        dy_l = e B_l        in place of (∂h_L/∂h_l)ᵀ e, with e: [n, outputs] what arrives at the chain

    Between two layers with parameters (activations, pooling) the error passes as ever; below the first
    there is no more to learn, and `dx` is its own. `B_l: [outputs, size]` is drawn from `seed` with
    a variance of `1/outputs`, the same at every step: it is no parameter, so those of a `Chain` serve.
    Chains in the chain are of one row with it. Raises `InputError` for predictions not `[n, outputs]`.
    Source: Nøkland 2016.
    """

    seed: int = 0

    def __init__(self, *layers: Layer, seed: int = 0):
        super().__init__(*layers)
        object.__setattr__(self, "seed", seed)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        if getattr(dy, "ndim", 0) != 2:
            raise InputError("DirectFeedback: expected predictions of shape [examples, outputs]")
        gathered, error, key = [], dy, jax.random.key(self.seed)
        row = list(chain_row(self, (params, saved), lambda _, own: zip(*own, strict=True)))
        first = next((i for i, (*_, (p, _)) in enumerate(row) if jax.tree.leaves(p)), 0)
        for i in reversed(range(len(row))):
            _, layer, (p, s) = row[i]
            g, error = layer.backward(p, s, error, gather)
            gathered.append(g)
            if jax.tree.leaves(p) and i > first:
                size = prod(error.shape[1:])
                b = jax.random.normal(jax.random.fold_in(key, i), (dy.shape[1], size), dy.dtype)
                error = (matmul(dy, b / dy.shape[1] ** 0.5)).reshape(error.shape).astype(error.dtype)
        return chain_nested(self, reversed(gathered)), error


def direct_feedback(net: Layer, seed: int = 0) -> Layer:
    """The same network with its outermost `Chain` as a `DirectFeedback`; raises `InputError` else."""
    if type(net) is not Chain:
        raise InputError(f"direct_feedback: expected a Chain, got {type(net).__name__}")
    return DirectFeedback(*net.layers, seed=seed)


# --- errors that pass where there is no derivative ----------------------------------------------------


@dataclass(frozen=True, repr=False)
class StraightThrough(Layer):
    """`y = f(x)`, with `f = body`; the error passes as if `f` were the identity: `dx = ∂L/∂y`.

    For steps, rounding and signs, whose derivative is 0 wherever it exists. Parameters and saved values
    are the body's, and its gradients what its own walk makes of `∂L/∂y`. A function becomes a body by
    `Auto`: `StraightThrough(Auto(rounded))` with `def rounded(params, x): return jnp.round(x)`. Raises
    `InputError` where `f` changes the shape. Source: Bengio et al. 2013.
    """

    body: Layer

    def init(self, key: Any, x: PyTree) -> PyTree:
        with inside("StraightThrough"):
            return self.body.init(key, x)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        with inside("StraightThrough"):
            y, saved = self.body.forward(params, x, mode)
            shapes = [[a.shape for a in jax.tree.leaves(tree)] for tree in (x, y)]
            if shapes[0] != shapes[1]:
                raise InputError(f"the body must keep the shape, {shapes[0]}, but returns {shapes[1]}")
        return y, saved

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        return self.body.backward(params, saved, dy, gather)[0], dy

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        return (Part("body", self.body, params, saved),)

    def whole(self, trees: Any) -> PyTree:
        return trees[0]


# fmt: off
SLOPES: dict[str, Callable[[Array], Array]] = {
    "fast_sigmoid": lambda u: 1 / jnp.square(1 + jnp.abs(u)),        # Zenke and Ganguli 2018
    "triangle":     lambda u: jnp.maximum(1 - jnp.abs(u), 0),        # Esser et al. 2016
    "box":          lambda u: (jnp.abs(u) < 0.5).astype(u.dtype),    # Courbariaux et al. 2016
}
# fmt: on


@dataclass(frozen=True, repr=False)
class Surrogate(Layer):
    """A step forward, a hill backward: `h = [a > 0]`, `∂L/∂a = ∂L/∂h · g(β a)`. Any shape; keeps `a`.

    The derivative of a step is 0 but for the jump. `g` stands in for it, with `β = steepness`:

        "fast_sigmoid"    1 / (1 + |u|)²      "triangle"    max(1 - |u|, 0)      "box"    [|u| < ½]

    all of which are largest at the threshold. `[0 > 0] = 0`. Sources: Zenke and Ganguli 2018
    (SuperSpike), Esser et al. 2016, Courbariaux et al. 2016; Neftci et al. 2019 for all of them.
    """

    slope: str = "fast_sigmoid"
    steepness: float = 1.0

    def __post_init__(self) -> None:
        if self.slope not in SLOPES:
            raise InputError(f"Surrogate: expected a slope of {', '.join(SLOPES)}, got {self.slope!r}")
        require_positive(self.steepness, "Surrogate: steepness")

    def forward(
        self, params: Any, x: Float[Array, "*dims"], mode: Mode = Eval()
    ) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
        require_floating(x, "x")
        return (x > 0).astype(x.dtype), x

    def pull(
        self, params: Any, saved: Float[Array, "*dims"], dy: Float[Array, "*dims"]
    ) -> tuple[Float[Array, "*dims"], Any]:
        a = saved.astype(wide(saved.dtype))
        return (dy.astype(a.dtype) * SLOPES[self.slope](self.steepness * a)).astype(dy.dtype), ()


# --- what in the input speaks for an output -----------------------------------------------------------


@dataclass(frozen=True, repr=False)
class GuidedReLU(Elementwise):
    """`h = max(a, 0)`; of the error, only what is positive passes: `da = [h > 0] max(∂L/∂h, 0)`.

    Guided backpropagation: no path is followed that a neuron blocks, nor one along which it would
    speak against the output. Keeps `h`. Source: Springenberg et al. 2015.
    """

    rule: ClassVar[Rule] = Rule(jax.nn.relu, "h", lambda h, d: jnp.where(h > 0, jnp.maximum(d, 0), 0))


def guided(leaf: Layer) -> Layer:
    """The rule: `GuidedReLU` in place of every `ReLU`."""
    return GuidedReLU() if type(leaf) is ReLU else leaf


def own_fields(layer: Layer) -> dict[str, Any]:
    return {f.name: getattr(layer, f.name) for f in fields(layer)}  # pyright: ignore[reportArgumentType]
