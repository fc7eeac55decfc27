"""What attention and a recurrence read: `x` alone, or `x` with a memory, a mask or a state beside it.

Both take their parts apart here, check their shapes, and give the errors back in the form that came.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxbp.layer import (
    InputError,
    Layer,
    PyTree,
    is_boolean,
    require_floating,
    require_params,
    shape_text,
)


@dataclass(frozen=True)
class Form:
    """How the parts of an input came: alone, as a pair or in a dict; static, so that it can be saved."""

    kind: type | None
    names: tuple[str, ...]
    present: tuple[str, ...]  # those of them that are not `None`

    def errors(self, **errors: PyTree) -> PyTree:
        """The errors in the form of the input, `None` for a part that has none (a mask)."""
        if self.kind is None:
            return errors["x"]
        found = [errors.get(name) if name in self.present else None for name in self.names]
        return dict(zip(self.names, found, strict=True)) if self.kind is dict else self.kind(found)


def parts_of(layer: Layer, x: PyTree, allowed: tuple[str, ...]) -> tuple[Form, dict[str, PyTree]]:
    """The form of `x`, and its parts by name: `x` and any of `allowed`; a `memory` may also make a pair.

    Raises `InputError` for other parts, and where `x` is no sequence `[..., time, features]`.
    """
    kind: type | None
    parts: dict[str, PyTree]
    if isinstance(x, dict):
        kind, parts = dict, x
    elif isinstance(x, tuple | list) and "memory" in allowed:
        if len(x) != 2:
            raise InputError(
                f"{layer}: expected a pair (x, memory), got {len(x)} (a mask goes in a dict)"
            )
        kind, parts = type(x), dict(zip(("x", "memory"), x, strict=True))
    else:
        kind, parts = None, {"x": x}
    if "x" not in parts or set(parts) - {"x", *allowed}:
        wanted = f"x, {allowed[0]} and {allowed[1]}"
        raise InputError(f"{layer}: expected {wanted}, got {', '.join(sorted(parts))}")
    present = tuple(name for name, part in parts.items() if part is not None)
    return Form(kind, tuple(parts), present), parts


def _require_sequence(layer: Layer, name: str, a: PyTree, features: int | None) -> None:
    require_floating(a, f"{layer}: {name}")
    if len(a.shape) < 2:
        raise InputError(f"{layer}: expected {name} as [..., time, features], got {shape_text(a)}")
    if features not in (None, a.shape[-1]):
        raise InputError(
            f"{layer}: expected {features} features in the last axis of {name}, got {a.shape[-1]}"
        )


def read_attention(
    layer: Layer, x: PyTree, params: PyTree = None
) -> tuple[Form, PyTree, PyTree, Bool[Array, "*dims"] | None]:
    """`(form, x, memory, mask)` with their shapes checked; the memory is `x` itself if none is given.

    The mask comes out as `[..., T or 1, S]`.
    """
    form, parts = parts_of(layer, x, ("memory", "mask"))
    inputs = parts["x"]
    memory = parts["memory"] if "memory" in form.present else inputs
    if params is not None:
        require_params(layer, params, *(f"w_{n}" for n in "qkvo"))
    for name, a, w in (("x", inputs, "w_q"), ("memory", memory, "w_k")):
        _require_sequence(layer, name, a, None if params is None else params[w].shape[0])
        if a.shape[:-2] != inputs.shape[:-2]:
            raise InputError(f"{layer}: expected {name} as [..., time, features], got {shape_text(a)}")
    mask = parts.get("mask")
    if mask is None:
        return form, inputs, memory, None
    keys, pairs = memory.shape[:-1], (*inputs.shape[:-1], memory.shape[-2])
    if not is_boolean(mask) or mask.shape not in (keys, pairs):
        raise InputError(
            f"{layer}: expected a boolean mask of shape {list(keys)} or {list(pairs)}, "
            f"got {shape_text(mask)}"
        )
    return form, inputs, memory, jnp.expand_dims(mask, -2) if mask.shape == keys else mask


def read_recurrent(
    layer: Layer, x: PyTree, states: int, features: int, params: PyTree = None
) -> tuple[Form, PyTree, Bool[Array, "*dims"] | None, tuple[Array, ...] | None]:
    """`(form, x, mask, state)` with their shapes checked: `states` arrays `[..., features]`, or none."""
    form, parts = parts_of(layer, x, ("mask", "state"))
    inputs, mask, state = parts["x"], parts.get("mask"), parts.get("state")
    if params is not None:
        require_params(layer, params, "w_x", "w_h", "b")
    _require_sequence(layer, "x", inputs, None if params is None else params["w_x"].shape[0])
    if mask is not None and (not is_boolean(mask) or mask.shape != inputs.shape[:-1]):
        raise InputError(
            f"{layer}: expected a boolean mask of shape {list(inputs.shape[:-1])}, got {shape_text(mask)}"
        )
    if state is None:
        return form, inputs, mask, None
    state = tuple(state) if isinstance(state, tuple | list) else (state,)
    wanted = (*inputs.shape[:-2], features)
    if len(state) != states or any(s.shape != wanted for s in state):
        raise InputError(
            f"{layer}: expected a state of {states} × {list(wanted)}, "
            f"got {', '.join(map(shape_text, state))}"
        )
    return form, inputs, mask, state
