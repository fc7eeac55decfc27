"""Values moved along an axis, whose error is moved along with them, where it has to come back.

A delay puts zeros (or another start) in front of a value and cuts as much off its end; a roll puts the
end in front. The error goes the other way: what was delayed is advanced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check.edits.edit import Instead
from jaxbp.check.edits.sites import Sites
from jaxbp.check.operations import Op

AROUND = "moved in a circle: what falls off at one end comes in again at the other"
MOVED = "moved on in the direction of the forward pass, where it has to come back"


def delays(sites: Sites, op: Op) -> Iterator[Instead]:
    """The error of a delay delayed, and that of a roll rolled on; or lost values that come in again."""
    axis = op.params["dimension"] if op.primitive.name == "concatenate" else -1
    cuts = [(k, cut) for k, v in enumerate(op.inputs) if (cut := _cut(sites, v)) is not None]
    for k, cut in cuts:
        whole = cut.in_avals[0].shape
        if whole != op.out_avals[0].shape:
            continue
        moved = [a for a, n in enumerate(whole) if cut.params["limit_indices"][a] - _start(cut, a) < n]
        if len(moved) != 1 or axis not in (-1, moved[0]) or not sites.is_live(op, k):
            continue
        along = moved[0]
        before = sum(aval.shape[along] for aval in op.in_avals[:k]) if axis >= 0 else _low(op, along)
        step = before - _start(cut, along)
        both = len({c.inputs[0] for _, c in cuts}) == 1 and len(cuts) == 2
        if step == 0 or (both and k != cuts[0][0]):
            continue
        at, about = (-1, "result") if both else (k, "error")
        yield Instead(op, at, _moved(cut, along, -step, both), "flip", MOVED, about=about)
        if not both:
            yield Instead(op, k, _moved(cut, along, step, True), "missing-rows", AROUND, about="error")


def _cut(sites: Sites, v: Any) -> Op | None:
    op = sites.producer.get(v) if isinstance(v, int) else None
    if op is None or op.primitive.name != "slice" or any(s != 1 for s in op.params["strides"] or ()):
        return None
    return op


def _start(cut: Op, axis: int) -> int:
    return int(cut.params["start_indices"][axis])


def _low(op: Op, axis: int) -> int:
    return int(op.params["padding_config"][axis][0])


def _moved(cut: Op, axis: int, step: int, around: bool) -> Any:
    """The value moved by `step`, with zeros coming in, or around in a circle."""

    def make(inputs: list[Any], results: list[Any], env: dict, given: Any) -> Any:
        x = env[cut.inputs[0]]
        if around:
            return jnp.roll(x, step, axis)
        size = x.shape[axis]
        kept = jax.lax.slice_in_dim(x, max(-step, 0), size - max(step, 0), axis=axis)
        pads = [(max(step, 0), max(-step, 0), 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        return jax.lax.pad(kept, jnp.zeros((), x.dtype), pads)

    return make
