"""Slips in computing the forward pass again, as a backward pass does that saves little.

Where the second computation is not the first (a mask or a factor left out, another ε or α), every step of
the derivation is right and the result is the derivative at the wrong place, or of another function. A
`Change` alters the value of one operation; a free one moves a number of the function until it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.edits.edit import Change
from jaxbp.check.edits.sites import Sites, is_elementwise
from jaxbp.check.evaluate import again
from jaxbp.check.operations import Constant, Op, is_float, widen

TWO_SIDED = ("mul", "div", "add", "sub", "max", "min", "add_any")
BENT = ("max", "min", "select_n", "clamp", "tanh", "logistic", "exp", "expm1", "pow")
MOST = 120


def bypasses(sites: Sites) -> list[Change]:
    """Operations left out when values are computed again; their derivatives kept, or left out too."""
    found: list[Change] = []
    for op in sites.ops():
        if not is_elementwise(op) or not any(o in sites.live for o in op.outputs):
            continue
        for k in range(len(op.inputs)):
            passes = op.in_avals[k].shape == op.out_avals[0].shape and is_float(op.in_avals[k])
            if passes and isinstance(op.inputs[k], int):
                found += _left_out(op, k)
    return found[-MOST:]


def _left_out(op: Op, k: int) -> Iterator[Change]:
    name = op.primitive.name
    if name == "select_n":
        words = f"without the selection, case {k - 1} everywhere"
        yield Change(op, _switch(lambda x: x[k]), "missing-rows", words, k)
        still = _switch(lambda x: x[k], keep=True)
        yield Change(op, still, "missing-rows", words + " in the values alone", k)
    elif name in TWO_SIDED and op.inputs[0] is not op.inputs[1]:
        other = 1 - k
        what = "with the other operand alone"
        plain = isinstance(op.inputs[other], Constant) and np.size(op.inputs[other].value) == 1
        chosen = name in ("max", "min")  # which of the two it is, entry by entry, is not asked
        cause = "missing-rows" if chosen else "wrong-point"
        moved = "scale" if plain and name in ("mul", "div") else cause
        yield Change(op, _switch(lambda x: x[k]), moved, what, other)
        yield Change(op, _switch(lambda x: x[k], keep=True), cause, what, other)
    elif len(op.inputs) == 1 or op.kind == "rule":
        yield Change(op, _switch(lambda x: x[k], keep=True), "wrong-point", "left out", k)


def _switch(
    value: Callable[[list[Any]], Any], keep: bool = False
) -> Callable[[list[Any], Any, Any], Any]:
    """The other value where the weight is not 0; `keep` keeps the operation's own derivative."""

    def make(operands: list[Any], result: Any, weight: Any) -> Any:
        def changed(pair: tuple[Any, list[Any]]) -> Any:
            result, operands = pair
            other = jnp.broadcast_to(value(operands), result.shape).astype(result.dtype)
            return result + jax.lax.stop_gradient(other - result) if keep else other

        return jax.lax.cond(weight != 0, changed, lambda pair: pair[0], (result, operands))

    return make


def constants(sites: Sites) -> list[Change]:
    """The numbers written in the function, each free to be another."""
    found = []
    leading = _leading(sites)
    for op in sites.ops():
        if op.kind != "plain" or not any(o in sites.live or o in leading for o in op.outputs):
            continue
        for k, v in enumerate(op.inputs):
            if isinstance(v, Constant) and np.size(v.value) == 1 and is_float(np.asarray(v.value)):
                number = float(np.asarray(v.value, np.float64).reshape(()))
                if np.isfinite(number):
                    cause = "wrong-activation" if _bends(sites, op) else _cause(op)
                    found.append(Change(op, _moved(op, k, v), cause, "", k, free=number))
        if op.outputs[0] in leading and op.primitive.name == "convert_element_type":
            found.append(Change(op, _plus, "wrong-point", "added to the fixed array", free=0.0))
    return found[:MOST]


def _plus(operands: list[Any], result: Any, weight: Any) -> Any:
    """A fixed array, all of it moved by the same number: positions that are counted from 1."""
    return result + weight.astype(result.dtype)


def _leading(sites: Sites) -> set[int]:
    """Values that do not depend on the arguments, but go into something that does: a smoothed target."""
    found: set[int] = set()
    for scope in reversed(sites.scopes):
        for op in reversed(scope.ops):
            if any(o in sites.live or o in found for o in op.outputs):
                found.update(v for v in op.inputs if isinstance(v, int) and v not in sites.live)
    return found


def _moved(op: Op, k: int, constant: Constant) -> Callable[[list[Any], Any, Any], Any]:
    value = widen(jnp.asarray(constant.value))

    def make(operands: list[Any], result: Any, weight: Any) -> Any:
        changed = list(operands)
        changed[k] = value + weight.astype(value.dtype)
        return again(op, changed)

    return make


def _cause(op: Op) -> str:
    return "scale" if op.primitive.name in ("mul", "div") else "wrong-point"


def _bends(sites: Sites, op: Op) -> bool:
    """Whether the number belongs to an activation: it is used in, or goes straight into, a bend."""
    if op.primitive.name in BENT:
        return True
    users = [o for o in sites.home[id(op)].ops if any(r in o.inputs for r in op.outputs)]
    return bool(users) and is_elementwise(op) and all(o.primitive.name in BENT for o in users)


def together(changes: list[Change]) -> list[list[int]]:
    """Which numbers move together: each alone, and all that are equal."""
    alone = [[n] for n in range(len(changes))]
    equal: dict[float, list[int]] = {}
    for n, change in enumerate(changes):
        equal.setdefault(float(change.free or 0.0), []).append(n)
    return alone + [group for group in equal.values() if len(group) > 1]


def trials(number: float) -> list[float]:
    """What a number may have been replaced by: what `number` is moved by, the likely first."""
    c = number
    likely = [0.0, 2 * c, c / 2, -c, c * c, 1 - c, 1.0, c + 1, c - 1, 10 * c, c / 10, 0.01, 0.1, 0.2]
    likely += [np.sqrt(abs(c)), 1 / c if c else 0.5]
    return [v - c for v in dict.fromkeys(likely) if v != c and np.isfinite(v)]
