"""Floating-point operations, counted in a traced program."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
from jax.extend import core

from jaxbp.layer import PyTree


def operations(fn: Any, *args: PyTree) -> int:
    """Floating-point operations of the matrix products and convolutions in `fn(*args)`.

    Loops of known length count each turn; of branches, the costliest counts, and of ways for different
    platforms the general one; the turns of a `while` are not known, and it counts as one.
    """
    return _operations(jax.make_jaxpr(fn)(*args).jaxpr)


def _operations(program: Any) -> int:
    total, general = 0, {}  # which branch is not for one platform alone
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            ((contract, _), _), left = params["dimension_numbers"], equation.invars[0].aval.shape
            total += 2 * prod(left[i] for i in contract) * prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            feature_axis = params["dimension_numbers"].rhs_spec[0]
            total += 2 * prod(out) * prod(kernel) // kernel[feature_axis]
        elif name == "platform_index":
            general[equation.outvars[0]] = params["platforms"].index(None)
        elif name == "cond":
            only = None if isinstance(at := equation.invars[0], core.Literal) else general.get(at)
            branches = params["branches"] if only is None else [params["branches"][only]]
            total += max(_operations(branch.jaxpr) for branch in branches)
        else:
            inner = [_operations(program) for value in params.values() for program in _programs(value)]
            total += params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)
    return total


def _programs(value: Any) -> list[Any]:
    """The jaxprs in one parameter of an equation."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [p for part in value for p in _programs(part)] if isinstance(value, tuple | list) else []
