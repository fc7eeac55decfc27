"""What in an input speaks for a class, by four rules: maps like the input, of one output each.

Every rule is a walk from a 1 at the class (relevance: from the output itself) down to the input, so `dx`,
which training throws away, is what it is after.

| rule | map of an input `x`, for the output `z_c` |
| --- | --- |
| gradient × input | `x_j ∂z_c/∂x_j`: how much each entry contributes, if `z_c` were linear |
| guided | `∂z_c/∂x_j` over paths that speak for `z_c` alone (`GuidedReLU`) |
| relevance | `z_c` itself, handed down in the shares of what it is made of (`shares.py`) |
| integrated | `(x_j - b_j) ∫₀¹ ∂z_c/∂x_j (b + s (x - b)) ds`, on the straight way from a baseline `b` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxbp.beyond.rules import guided
from jaxbp.beyond.shares import relevance
from jaxbp.compose import Chain
from jaxbp.layer import InputError, Layer, PyTree, children, is_leaf, leaves, map_leaves, require_floating
from jaxbp.layers.conv import Conv
from jaxbp.layers.elementwise import ReLU

EPSILON = 1e-3
"""what takes relevance away where contributions cancel"""
STEPS = 32
"""points at which the integral is taken; a lenet's then adds up to within a hundredth"""

Map = Callable[[PyTree, Array, Array, Array], Array]


@dataclass(frozen=True)
class Attribution:
    """One rule: `make(net)` is `(params, x, classes, baseline) -> map`; `says` is what a map shows.

    `make` raises `InputError` for a network that the rule is not written for.
    """

    make: Callable[[Layer], Map]
    says: str


def attributions(
    net: Layer, rules: Sequence[str] | None = None
) -> Callable[..., dict[str, Float[Array, "examples *dims"]]]:
    """`fn(params, x, classes, baseline=None) -> {rule: map}`, maps shaped like `x: [examples, *dims]`.

    `classes: [examples]` says which output `z_c` of each example is explained, in evaluation, before any
    softmax that is the loss's. `rules` are names of `ATTRIBUTIONS`, in any order; by default all that are
    written for the network: "guided" needs a `ReLU`, "relevance" a `Chain` of the layers that
    `relevance` knows. `baseline`, shaped like one example or broadcast to it, is what "integrated" begins
    at: an input that says nothing, by default 0.

    Raises `InputError` for an unknown rule, for one that `rules` names and the network does not allow,
    for inputs that are no floating-point numbers, and for outputs not `[examples, outputs]`.
    """
    for name in rules or ():
        if name not in ATTRIBUTIONS:
            raise InputError(f"attributions: expected rules of {', '.join(ATTRIBUTIONS)}, got {name!r}")
    maps = {}
    for name in ATTRIBUTIONS if rules is None else rules:
        try:
            maps[name] = ATTRIBUTIONS[name].make(net)
        except InputError:
            if rules is not None:
                raise

    def fn(params: PyTree, x: Any, classes: Any, baseline: Any = None) -> dict[str, Array]:
        require_floating(x, "x")
        start = jnp.asarray(0 if baseline is None else baseline, x.dtype)
        if start.ndim >= x.ndim:
            raise InputError(
                f"attributions: expected a baseline like one example, got {list(start.shape)}"
            )
        start = jnp.broadcast_to(start, x.shape[1:])[None]
        return {name: of(params, x, classes, start) for name, of in maps.items()}

    return fn


def _pulled(net: Layer, params: PyTree, x: Array, classes: Array, of_output: bool = False) -> Array:
    """What a walk carries to the input, of a 1 (or the output itself) at the class."""
    z, saved = net.forward(params, x)
    if getattr(z, "ndim", 0) != 2:
        raise InputError("attributions: expected a network whose outputs are [examples, outputs]")
    one = jax.nn.one_hot(classes, z.shape[-1], dtype=z.dtype)
    return net.backward(params, saved, z * one if of_output else one)[1]


def _gradient_times_input(net: Layer) -> Map:
    """`x_j ∂z_c/∂x_j`. Source: Shrikumar et al. 2016; the gradient alone, Simonyan et al. 2014.

    Where all between is linear or a ReLU and no bias adds to it, `z_c` is linear along `s x`, and the
    parts add up to it: `Σ_j x_j ∂z_c/∂x_j = z_c`.
    """
    return lambda params, x, classes, _: x * _pulled(net, params, x, classes)


def _guided(net: Layer) -> Map:
    """`∂z_c/∂x_j` through `GuidedReLU`s. Source: Springenberg et al. 2015."""
    if not any(type(leaf) is ReLU for _, leaf in leaves(net)):
        raise InputError("attributions: guided needs a ReLU, and the network has none")
    other = map_leaves(guided, net)
    return lambda params, x, classes, _: _pulled(other, params, x, classes)


def _relevance(net: Layer) -> Map:
    """LRP: z⁺ in the convolutions, ε in the dense layers; see `shares.py`.

    The parts add up to `z_c` less what biases and ε keep. Sources: Bach et al. 2015, Montavon et al.
    2017.
    """
    _require_chains(net)

    def rule(leaf: Layer) -> Layer:
        gamma = float("inf") if isinstance(leaf, Conv) else 0.0
        return relevance(EPSILON, gamma)(leaf)

    other = map_leaves(rule, net)
    return lambda params, x, classes, _: _pulled(other, params, x, classes, of_output=True)


def _require_chains(net: Layer) -> None:
    """Where paths meet again, a share of each would have to be taken: nobody has written that."""
    todo = [net]
    while todo:
        layer = todo.pop()
        if is_leaf(layer):
            continue
        if type(layer) is not Chain:
            raise InputError(
                f"attributions: relevance is written for a Chain, got {type(layer).__name__}"
            )
        todo += [part for _, part in children(layer)]


def _integrated(net: Layer) -> Map:
    """Integrated gradients, by the midpoints of `STEPS` pieces. Source: Sundararajan et al. 2017.

    The parts add up to `z_c(x) - z_c(b)`, the integral of the gradient along the way, but for the error
    of the sum.
    """

    def of(params: PyTree, x: Array, classes: Array, baseline: Array) -> Array:
        way = x - baseline

        def add(total: Array, s: Array) -> tuple[Array, None]:
            return total + _pulled(net, params, baseline + s * way, classes), None

        shares = (jnp.arange(STEPS, dtype=x.dtype) + 0.5) / STEPS
        return way * jax.lax.scan(add, jnp.zeros_like(x), shares)[0] / STEPS

    return of


ATTRIBUTIONS: dict[str, Attribution] = {
    "gradient × input": Attribution(
        _gradient_times_input,
        "Each input times the derivative of the output by it: its share, if the network were linear.",
    ),
    "guided": Attribution(
        _guided,
        "The derivative along those paths alone on which every neuron is on and speaks for the output.",
    ),
    "relevance": Attribution(
        _relevance,
        "The output is shared out among what it is the sum of, layer by layer, down to the inputs.",
    ),
    "integrated": Attribution(
        _integrated,
        "Derivatives summed up on the straight way from an input that says nothing to this one.",
    ),
}
"""the rules by their names"""
