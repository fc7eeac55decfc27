"""Why a gradient is not linear in the cotangent: a bare term, or the function itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxbp.check.backward.program import Backward
from jaxbp.check.diagnosis.patterns import matches
from jaxbp.check.diagnosis.roles import at, source
from jaxbp.check.oracle import float64
from jaxbp.check.report import Finding

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case


def itself(case: Case, i: int) -> Finding | None:
    """`f(dy)`: the function itself, applied to the cotangent."""
    shapes = [np.shape(d) for d in case.points[0][1]]
    if shapes != [case.true[i][0].shape]:
        return None
    with float64():
        made = [
            np.asarray(
                case.oracle.outputs(
                    [jnp.asarray(dy[0]) if n == i else leaf for n, leaf in enumerate(leaves)]
                )[0]
            )
            for leaves, dy in case.points
        ]
    if not matches(case.got[i], made, case.tolerance[i]):
        return None
    path = case.paths[i]
    detail = (
        f"{path} is the function itself, applied to the cotangent: the forward pass is run on dy, in the "
        "place of the transposed Jacobian at the argument"
    )
    advice = (
        "Carry dy back through each operation with its derivative at the argument; that is the forward "
        "pass again only where the function is linear and symmetric."
    )
    return Finding(path, "stale", detail, {"advice": advice}, "itself")


def bare(case: Case, i: int, left: np.ndarray) -> Finding | None:
    """The term that is not multiplied by the cotangent: `left` is what remains at a cotangent of 0."""
    size = float(np.max(np.abs(left), initial=0.0))
    if left.shape != case.true[i][0].shape or not size > 1e-9 or not np.isfinite(size):
        return None
    path = case.paths[i]
    detail = (
        f"{path}: at a cotangent of 0 it is up to {size:.3g}, and not 0: a term of it is not multiplied "
        "by the cotangent"
    )
    found = Finding(path, "stale", detail, {"left": size, "advice": ADVICE}, "bare")
    if case.oracle.method != "reverse":
        return found
    leaves, dy = case.points[0]
    backward = Backward(case.oracle, leaves, dy)
    env = backward.values(leaves, [np.ones(np.shape(d)) for d in dy])
    whole = np.asarray(env[backward.scope.outputs[i]])
    for op in backward.scope.ops:
        for k, error in enumerate(backward.linear[id(op)]):
            if not error or op.bodies or not op.place.file:
                continue
            cut = {id(op): lambda run, x, env, k=k: run([v * (n != k) for n, v in enumerate(x)])}
            term = whole - np.asarray(backward.again(env, cut)[i])
            if matches([left], [term], max(case.tolerance[i], 1e-5)):
                what = (
                    f"{path}: the contribution that comes back through `{op.name}` {at(op)} is not "
                    "multiplied by the cotangent (it is still there at a cotangent of 0)"
                )
                place = {"source": source(op), "file": op.place.file, "line": op.place.line}
                return Finding(path, "stale", what, {**found.evidence, **place}, "bare")
    return found


ADVICE = "A backward pass is linear in the cotangent: multiply every term by it, also the last one."
