"""Where NaN or infinity begins: the first layer whose result is not finite although what came in was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.nonfinite_ops import first_operation
from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree
from jaxbp.losses import Loss
from jaxbp.record import Passed, each_passed, passed, recorded


@dataclass(frozen=True)
class Nonfinite:
    """The first place, in the order of computation, where a value stops being finite.

    `phase` is "parameters", "input", "forward", "loss" or "backward"; `layer` and `path` say which
    leaf; `inputs` and `output` describe the values around it; `operation` is the first operation in
    the layer that makes such a value, where one can be named.
    """

    phase: str
    path: str
    layer: str
    inputs: str
    output: str
    operation: str = ""

    def __str__(self) -> str:
        where = f"{self.layer} at {self.path}" if self.layer else self.path
        text = f"{self.phase}: {where}: {self.inputs} -> {self.output}"
        return f"{text}\n  {self.operation}" if self.operation else text


def describe(tree: PyTree) -> str:
    """`float32[8, 4] in [-1.2, 3.4]`, and how many entries are NaN or infinite, with the first."""
    parts = []
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        values = np.asarray(leaf, np.float64)
        finite = values[np.isfinite(values)]
        span = f" in [{finite.min():.4g}, {finite.max():.4g}]" if finite.size else ""
        bad = np.argwhere(~np.isfinite(values))
        count = (
            f", {np.isnan(values).sum()} NaN, {np.isinf(values).sum()} infinite, the first at "
            f"{bad[0].tolist()}"
            if len(bad)
            else ""
        )
        parts.append(f"{leaf.dtype}{list(values.shape)}{span}{count}")
    return "; ".join(parts) or "nothing"


def is_finite(tree: PyTree) -> bool:
    """Whether every floating entry is finite."""
    return all(
        bool(jnp.all(jnp.isfinite(leaf)))
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def locate_nonfinite(
    net: Layer, loss: Loss | None, params: PyTree, x: PyTree, y: Any = None, mode: Mode = Eval()
) -> Nonfinite | None:
    """The first layer at which forward or backward turns to NaN or infinity; `None` if all is finite.

    Runs the two passes once, un-jitted, with everything that passes each leaf recorded. Without a
    `loss`, an error of ones is sent back. Raises `InputError` where `net` is not a layer.
    """
    if not isinstance(net, Layer):
        raise InputError(f"locate_nonfinite: expected a layer, got {type(net).__name__}")
    for phase, tree in (("parameters", params), ("input", {"x": x, "y": y})):
        if not is_finite(tree):
            return Nonfinite(phase, _first_path(tree), "", "as given", describe(tree))
    same = recorded(net)
    prediction, saved = same.forward(params, x, mode)
    if loss is None:
        value, dy = prediction, jax.tree.map(jnp.ones_like, prediction)
    else:
        value, kept = loss.forward(prediction, y)
        dy = loss.backward(kept)
    order = each_passed(net, params, same.backward(params, saved, dy, passed)[0], apart=True)
    for part in order:
        seen: Passed = part.gathered
        if not is_finite(seen.y):
            operation = _operation(lambda v, m=part: m.layer.forward(m.params, v, mode)[0], [seen.x])
            address = part.path or repr(net), repr(part.layer)
            return Nonfinite("forward", *address, describe(seen.x), describe(seen.y), operation)
    if loss is not None and not (is_finite(value) and is_finite(dy)):
        operation = _operation(lambda q: loss.forward(q, y)[0], [prediction])
        return Nonfinite("loss", repr(loss), "", describe(prediction), describe((value, dy)), operation)
    for part in reversed(order):
        seen = part.gathered
        made = (seen.gradient, seen.dx)
        if not is_finite(made):
            operation = _operation(
                lambda d, m=part, s=seen: m.layer.backward(m.params, s.saved, d), [seen.dy]
            )
            address = part.path or repr(net), repr(part.layer)
            around = f"error {describe(seen.dy)}, input {describe(seen.x)}"
            return Nonfinite("backward", *address, around, describe(made), operation)
    return None


def _first_path(tree: PyTree) -> str:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_finite(leaf):
            return jax.tree_util.keystr(path)
    return ""


def _operation(fn: Any, values: list[Any]) -> str:
    try:
        return first_operation(fn, values)
    except Exception:
        return ""
