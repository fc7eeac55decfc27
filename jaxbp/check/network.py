"""For a network: the first wrong layer in the backward walk, found by checking every leaf alone.

A wrong `pull` spoils every layer before it, and a wrong `gradient` one layer only. The walk of the
recorded network says what went in and came out at each leaf; the leaf alone is then checked against
autodiff of its own forward pass, so that no fault is blamed on a neighbour. No layer is known by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxbp.check.report import Finding
from jaxbp.layer import Eval, Layer, composed
from jaxbp.oracle.error import relative_error
from jaxbp.record import Passed, each_passed, record

if TYPE_CHECKING:
    from jaxbp.check.verify import Check


def locate(check: Check) -> list[Finding]:
    """Findings about the first wrong layer (last in forward order), or none if no leaf is wrong alone."""
    net = check.target.layer
    assert net is not None
    if not composed(net):
        return []
    args: Any = check.target.rebuild(
        [
            jax.numpy.asarray(v, leaf.dtype)
            for v, leaf in zip(check.points[0].leaves, check.target.leaves, strict=True)
        ]
    )
    mode = args[2] if len(args) > 2 else Eval()
    dy = check.rule.cotangent(check.dy(check.points[0]))
    try:
        _, gathered = record(net, args[0], args[1], mode, lambda _: dy)
    except Exception:
        return []
    order = reversed(each_passed(net, args[0], gathered, apart=True))
    for number, part in enumerate(order):
        layer, path = part.layer, part.path
        if _suspect(layer, part.params, part.gathered):
            findings = _alone(check, layer, part.params, part.gathered.x)
            if findings:
                place = f"{layer!r} at {path}" + (", the last layer" if number == 0 else "")
                return [
                    Finding(
                        f"{path}: {f.path}",
                        f.cause,
                        f"the first wrong layer in the backward walk is {place}: {f.detail}",
                        {**f.evidence, "layer": repr(layer), "address": path},
                    )
                    for f in findings
                ]
    return []


def _suspect(layer: Layer, params: Any, passed: Passed) -> bool:
    """Whether the leaf's own results differ from autodiff of its own forward pass, at its own error."""
    mode = Eval()
    try:
        _, vjp = jax.vjp(lambda p, x: layer.forward(p, x, mode)[0], params, passed.x)
        wanted = vjp(passed.dy)
    except Exception:
        return True
    for got, true in zip((passed.gradient, passed.dx), wanted, strict=True):
        pairs = zip(_leaves(got), _leaves(true), strict=False)
        for g, t in pairs:
            if np.shape(g) != np.shape(t):
                return True
            eps = float(jax.numpy.finfo(t.dtype).eps)
            if not relative_error(g, t) <= 0.05 * min(1.0, (eps / 1e-3) ** 0.5 + 1e-3):
                return True
    return len(_leaves(passed.gradient)) != len(_leaves(wanted[0]))


def _leaves(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]


def _alone(check: Check, layer: Layer, params: Any, x: Any) -> list[Finding]:
    """The leaf checked on its own, with the inputs and the error that it had in the walk."""
    from jaxbp.check.verify import check_gradients  # the two need each other

    report = check_gradients(layer, params, x, seed=check.seed, budget=check.budget)
    check.report.evaluations += report.evaluations
    return report.findings if not report.ok else []
