"""For a network: the first wrong layer in the backward walk, found by checking every leaf alone.

A wrong `pull` spoils every layer before it, and a wrong `gradient` one layer only. The walk of the
recorded network says what went in and came out at each leaf; the leaf alone is then checked against
autodiff of its own forward pass, so that no fault is blamed on a neighbour. No layer is known by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxbp.check.oracle import relative_error
from jaxbp.check.report import Finding
from jaxbp.compose import Record
from jaxbp.layer import Eval, Layer, children, is_leaf, map_leaves

if TYPE_CHECKING:
    from jaxbp.check.verify import Check


def locate(check: Check) -> list[Finding]:
    """Findings about the first wrong layer (last in forward order), or none if no leaf is wrong alone."""
    net = check.target.layer
    assert net is not None
    if is_leaf(net):
        return []
    args: Any = check.target.rebuild(
        [
            jax.numpy.asarray(v, leaf.dtype)
            for v, leaf in zip(check.points[0].leaves, check.target.leaves, strict=True)
        ]
    )
    mode = args[2] if len(args) > 2 else Eval()
    recorded: Any = map_leaves(Record, net)
    try:
        _, saved = recorded.forward(args[0], args[1], mode)
        records, _ = recorded.backward(args[0], saved, check.rule.cotangent(check.dy(check.points[0])))
    except Exception:
        return []
    order = list(reversed(list(walk(net, args[0], records))))
    for number, (path, layer, params, record) in enumerate(order):
        if _suspect(layer, params, record):
            findings = _alone(check, path, layer, params, record)
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


def walk(net: Layer, params: Any, records: Any, path: str = "") -> Any:
    """`(path, leaf, params, record)` in forward order; a scanned stack gives its last copy's slice."""
    if is_leaf(net):
        yield path or repr(net), net, params, records
        return
    parts = list(children(net))
    if parts[0][0].endswith("]"):
        for k, (name, part) in enumerate(parts):
            inner = f"{path}.{name}" if path else name
            yield from walk(part, params[k], records[k], inner)
        return
    name, body = parts[0]
    inner = f"{path}.{name}" if path else name
    depth = getattr(net, "depth", None)
    if depth is None:
        yield from walk(body, params, records, inner)
        return
    for k in range(depth):
        p, r = (jax.tree.map(lambda a, k=k: a[k], tree) for tree in (params, records))
        yield from walk(body, p, r, f"{path}[{k}].{name}" if path else f"[{k}].{name}")


def _suspect(layer: Layer, params: Any, record: dict[str, Any]) -> bool:
    """Whether the leaf's own results differ from autodiff of its own forward pass, at its own error."""
    mode = Eval()
    try:
        _, vjp = jax.vjp(lambda p, x: layer.forward(p, x, mode)[0], params, record["x"])
        wanted = vjp(record["dy"])
    except Exception:
        return True
    for got, true in zip((record["gradient"], record["dx"]), wanted, strict=True):
        pairs = zip(_leaves(got), _leaves(true), strict=False)
        for g, t in pairs:
            if np.shape(g) != np.shape(t):
                return True
            eps = float(jax.numpy.finfo(t.dtype).eps)
            if not relative_error(g, t) <= 0.05 * min(1.0, (eps / 1e-3) ** 0.5 + 1e-3):
                return True
    return len(_leaves(record["gradient"])) != len(_leaves(wanted[0]))


def _leaves(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]


def _alone(check: Check, path: str, layer: Layer, params: Any, record: dict[str, Any]) -> list[Finding]:
    """The leaf checked on its own, with the inputs and the error that it had in the walk."""
    from jaxbp.check.verify import check_gradients  # the two need each other

    report = check_gradients(layer, params, record["x"], seed=check.seed, budget=check.budget)
    check.report.evaluations += report.evaluations
    return report.findings if not report.ok else []
