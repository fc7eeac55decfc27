"""Weights in and out of other libraries: PyTorch `state_dict`s and Flax variables.

PyTorch and Flax name a layer's arrays and order their axes in their own ways; `foreign.py` says how, for
a layer that both have. Which of their modules belongs to which layer is decided by order: the k-th module
with weights is the k-th leaf layer with parameters, in forward order, unless `modules` names them. A
`Stack` of depth `d` stands for `d` modules of each of its layers in a row, one copy after another. A
torch recurrence of several layers or directions is a module each: `lstm.l0`, `lstm.l0_reverse`, …

Images are `NHWC` here and `NCHW` in torch, so where a `Flatten` of an image goes into a `Dense`, the rows
of its weight stand in another order; pass an example input `x`, and they are put right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import InputError, Layer, PyTree, Train, inside, rebuild, walk
from jaxbp.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Flatten,
    GlobalAvgPool,
    LayerNorm,
    MaxPool,
    RMSNorm,
)
from jaxbp.record import each_passed, record
from jaxbp.weights.foreign import FLAX, TORCH, Format, Table, full_name, grouped

Arrays = Mapping[str, Any]
ENTRYWISE = BatchNorm, LayerNorm, RMSNorm  # they keep a number an entry, and hand the order on


# --- the layers with parameters, in forward order -----------------------------------------------------


@dataclass
class _Slot:
    """One copy of a leaf layer with parameters, and what it holds."""

    path: str
    layer: Layer
    params: Any
    image: tuple[int, ...] | None = None  # the shape of one image whose Flatten comes right before


def _slots(net: Layer, params: PyTree, x: PyTree = None) -> list[_Slot]:
    """The slots of a network, those without parameters too.

    A layer that works with another's parameters (`Tied`) holds none. With an input `x`, each knows the
    shape of the image wherever a `Flatten` of one leads into it.
    """
    parts = list(walk(net, params, apart=True))
    images = {} if x is None else _images(net, params, x)
    return [
        _Slot(part.path, part.layer, () if part.shared else part.params, images.get(part.path))
        for part in parts
    ]


def _images(net: Layer, params: PyTree, x: PyTree) -> dict[str, tuple[int, ...] | None]:
    """By path, the shape of the image whose `Flatten` leads into a layer."""
    mode, image, images = Train(jax.random.key(0)), None, {}
    _, gathered = jax.eval_shape(lambda p, v: record(net, p, v, mode), params, x)
    for part in each_passed(net, params, gathered):
        images[part.path] = image
        if isinstance(part.layer, Flatten):
            shape = part.gathered.x.shape
            image = shape[1:] if len(shape) > 3 else None
        elif jax.tree.leaves(part.params) and not isinstance(part.layer, ENTRYWISE):
            image = None
    return images


def _with_parameters(slots: Sequence[_Slot]) -> list[_Slot]:
    return [slot for slot in slots if jax.tree.leaves(slot.params)]


def _turned(ours: dict[str, Any], slot: _Slot, into: bool) -> dict[str, Any]:
    """The arrays of a layer after a Flatten of `[*positions, channels]`, from or to channels first.

    The rows of a Dense weight, and what a norm keeps of every entry.
    """
    if slot.image is None or prod(slot.image[:-1]) == 1:
        return ours
    if type(slot.layer) is Dense:
        return ours | {"w": _rows(ours["w"], slot.image, into)}
    if isinstance(slot.layer, ENTRYWISE):
        return {name: _rows(array, slot.image, into) for name, array in ours.items()}
    raise InputError(
        f"{slot.path}: {slot.layer} comes after a Flatten of an image, whose entries stand in another "
        "order there; only a Dense and norms of single entries can be put right"
    )


def _rows(w: np.ndarray, image: tuple[int, ...], into: bool) -> np.ndarray:
    if w.shape[0] != prod(image):
        return w
    *positions, channels = image
    if into:
        return np.moveaxis(w.reshape(channels, *positions, -1), 0, -2).reshape(w.shape)
    return np.moveaxis(w.reshape(*positions, channels, -1), -2, 0).reshape(w.shape)


# --- in and out ---------------------------------------------------------------------------------------


def from_torch(
    net: Layer,
    params: PyTree,
    state: Arrays,
    *,
    x: PyTree = None,
    modules: Sequence[str] | None = None,
) -> PyTree:
    """`params` of `net` with the weights of a torch `state_dict` (tensors or arrays).

    `x`, an array or `jax.ShapeDtypeStruct` like the network's input, is needed where a `Flatten` of an
    image leads into a `Dense` or a norm; without it that is an error, but for a network that begins with
    the `Flatten`, whose input nobody knows: pass it wherever images have colours.

    `modules` gives the names of torch's modules in the order of our layers
    (`["features.0", "features.3", "classifier"]`), where that is not the order of the `state_dict`.

    Numbers in names go before the order of the `state_dict` (`2` before `10`); where it was sorted, as
    safetensors does, so does what fits a layer.

    Raises `InputError` for a layer that has no counterpart, a number of modules that differs, a missing
    or left-over array, and a shape that does not fit; each names both sides.
    """
    return _read(net, params, grouped(_arrays(state)), TORCH, x, modules, channels_first=True)


def to_torch(
    net: Layer, params: PyTree, *, x: PyTree = None, modules: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """A `state_dict` of NumPy arrays, the inverse of `from_torch`.

    `{k: torch.from_numpy(v) for k, v in to_torch(...).items()}` goes into `load_state_dict`; modules are
    called by their number in forward order unless `modules` names them. `num_batches_tracked`, which
    jaxbp does not keep, is left out: load with `strict=False` where a BatchNorm is in the network.
    """
    written = _write(net, params, TORCH, x, modules, channels_first=True)
    named = ((full_name(n, key), array) for n, arrays in written.items() for key, array in arrays.items())
    return dict(named)


def from_flax(
    net: Layer, params: PyTree, variables: Any, *, modules: Sequence[str] | None = None
) -> PyTree:
    """`params` of `net` with the weights of Flax variables: `{"params": …, "batch_stats": …}`.

    Arguments and errors as in `from_torch`; a module in another has a name with dots (`"block.Dense_0"`).
    The order of Flax's dictionary is that of creation until some function sorts it (`jax.jit` and
    `jax.tree.map` do); then numbers (`Dense_2` before `Dense_10`) and what fits a layer decide, and an
    error says where `modules` has to. Flax's `Conv` and `Dense` pad and flatten as ours.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise InputError('from_flax: expected variables with an entry "params"')
    flat: dict[str, Any] = {}
    for collection in ("params", "batch_stats"):
        flat |= dict(_flatten(variables.get(collection, {})))
    return _read(net, params, grouped(_arrays(flat)), FLAX, None, modules, channels_first=False)


def to_flax(net: Layer, params: PyTree, modules: Sequence[str] | None = None) -> dict[str, Any]:
    """Flax variables of NumPy arrays, the inverse of `from_flax`; modules are `Dense_0`, `Conv_0`, …"""
    if modules is None:
        kinds: dict[str, int] = {}
        modules = []
        for slot in _with_parameters(_slots(net, params)):
            kind = type(slot.layer).__name__
            modules.append(f"{kind}_{kinds.setdefault(kind, 0)}")
            kinds[kind] += 1
    written = _write(net, params, FLAX, None, modules, channels_first=False)
    variables: dict[str, Any] = {"params": {}}
    for name, arrays in written.items():
        for key, array in arrays.items():
            collection = "batch_stats" if key in ("mean", "var") else "params"
            place = variables.setdefault(collection, {})
            *parts, last = f"{name}.{key}".split(".")
            for part in parts:
                place = place.setdefault(part, {})
            place[last] = array
    return variables


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _arrays(state: Arrays) -> dict[str, np.ndarray]:
    """NumPy arrays of what may be torch tensors; bfloat16 ones, which NumPy lacks, are widened."""
    arrays = {}
    for name, value in state.items():
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.float() if "bfloat16" in str(value.dtype) else value
        arrays[name] = np.asarray(value)
    return arrays


def _format(slot: _Slot, table: Table) -> Format:
    kind = type(slot.layer)
    if kind not in table:
        known = ", ".join(other.__name__ for other in table)
        raise InputError(f"{slot.path}: {kind.__name__} has no counterpart (there is one for {known})")
    return table[kind]


def _ours(slot: _Slot) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in slot.params.items()}


# --- in which order their modules are ours -----------------------------------------------------------


def _levels(name: str) -> list[str]:
    return name.split(".")


def _goes_before(a: str, b: str) -> bool:
    """Whether numbers say so: `Dense_2` before `Dense_10`, `l0` before `l0_reverse`; `fc`, `conv`: no."""
    for here, there in zip(_levels(a), _levels(b), strict=False):
        if here == there:
            continue
        parts, others = (re.split(r"(\d+)", level) for level in (here, there))
        for part, other in zip(parts, others, strict=False):
            if part != other:
                both = part.isdigit() and other.isdigit()
                return int(part) < int(other) if both else not part and bool(other)
        return len(parts) < len(others)
    return False


def _by_number(names: Sequence[str]) -> list[str]:
    """Names in their order, but where numbers say otherwise."""
    left, ordered = list(names), []
    while left:
        first = next(n for n in left if not any(_goes_before(other, n) for other in left))
        ordered.append(first)
        left.remove(first)
    return ordered


def _in_order(
    slots: Sequence[_Slot], groups: dict[str, dict[str, np.ndarray]], table: Table
) -> Iterator[str]:
    """The modules of a sorted dictionary, whose order says nothing: by their numbers and by what fits.

    `jax.tree.map` and safetensors sort. Of the modules that no number puts behind another one left, the
    only one whose arrays fit the next layer is the next; where several do, that is an error.
    """
    left = list(groups)
    for slot in slots:
        free = [n for n in left if not any(_goes_before(other, n) for other in left)]
        if len(free) > 1:
            fitting = [name for name in free if _fits(slot, groups[name], _format(slot, table))]
            if len(fitting) > 1:
                raise InputError(
                    f"{slot.path}: {slot.layer} may be {' or '.join(fitting)}: their dictionary is "
                    "sorted, not in the network's order; pass the names in order as modules"
                )
            free = fitting or free
        left.remove(free[0])
        yield free[0]


def _fits(slot: _Slot, arrays: dict[str, np.ndarray], form: Format) -> bool:
    expected = form.write(_ours(slot), slot.layer)
    return set(expected) - set(form.optional) <= set(arrays) <= set(expected) and all(
        array.shape == expected[key].shape for key, array in arrays.items()
    )


def _require_no_image(slots: Sequence[_Slot]) -> None:
    """Raise where a `Flatten` of an image leads into parameters: their order depends on its shape."""
    channels: int | None = None  # of the image; 0 where nobody said how many
    flat: int | None = None
    for slot in slots:
        if isinstance(slot.layer, Conv | ConvTranspose):
            channels = slot.layer.features
        elif isinstance(slot.layer, MaxPool | AvgPool):
            channels = channels or 0
        elif isinstance(slot.layer, GlobalAvgPool):
            channels = None
        elif isinstance(slot.layer, Flatten):
            channels, flat = None, channels
        elif flat is not None and jax.tree.leaves(slot.params):
            rows = jax.tree.leaves(slot.params)[-1].shape[0]
            if rows != flat:  # of one position each channel is its own row
                raise InputError(
                    f"{slot.path}: {slot.layer} comes after a Flatten of an image, whose channels come "
                    "first there and last here; pass an input of the network as x"
                )
            flat = None


def _matched(slots: list[_Slot], names: Sequence[str]) -> Iterator[tuple[_Slot, str]]:
    if len(slots) != len(names):
        raise InputError(
            f"{len(slots)} layers with parameters here ({', '.join(s.path for s in slots)}), "
            f"but {len(names)} modules there ({', '.join(names)})"
        )
    return zip(slots, names, strict=True)


def _read(
    net: Layer,
    params: PyTree,
    groups: dict[str, dict[str, np.ndarray]],
    table: Table,
    x: PyTree,
    modules: Sequence[str] | None,
    channels_first: bool,
) -> PyTree:
    slots = _slots(net, params, x)
    if channels_first and x is None:
        _require_no_image(slots)
    if modules is not None and (missing := [m for m in modules if m not in groups]):
        raise InputError(f"no module {', '.join(missing)} (there: {', '.join(groups)})")
    ours = _with_parameters(slots)
    names = list(groups) if modules is None else modules
    pairs = _matched(ours, names)
    if modules is None and names in (sorted(names), sorted(names, key=_levels)):
        pairs = zip(ours, _in_order(ours, groups, table), strict=True)
    elif modules is None:
        pairs = zip(ours, _by_number(names), strict=True)
    for slot, name in pairs:
        slot.params = _read_one(slot, name, groups[name], _format(slot, table), channels_first)
    return rebuild(net, params, [slot.params for slot in slots], apart=True)


def _read_one(
    slot: _Slot, name: str, arrays: dict[str, np.ndarray], form: Format, channels_first: bool
) -> dict[str, Any]:
    with inside(slot.path) if slot.path else nullcontext():
        expected = form.write(_ours(slot), slot.layer)
        if not set(expected) - set(form.optional) <= set(arrays) <= set(expected):
            raise InputError(
                f"{slot.layer} wants {', '.join(sorted(expected))}, "
                f"but {name} has {', '.join(sorted(arrays))}"
            )
        for key, array in arrays.items():
            if array.shape != expected[key].shape:
                raise InputError(
                    f"{slot.layer} wants {key} of shape {list(expected[key].shape)}, "
                    f"got {name}.{key} of shape {list(array.shape)}"
                )
    zeros = {key: np.zeros_like(expected[key]) for key in form.optional if key in expected}
    new = form.read({**zeros, **arrays}, slot.layer)
    if channels_first:
        new = _turned(new, slot, into=True)
    return {key: jnp.asarray(array, slot.params[key].dtype) for key, array in new.items()}


def _write(
    net: Layer,
    params: PyTree,
    table: Table,
    x: PyTree,
    modules: Sequence[str] | None,
    channels_first: bool,
) -> dict[str, dict[str, np.ndarray]]:
    every = _slots(net, params, x)
    if channels_first and x is None:
        _require_no_image(every)
    slots = _with_parameters(every)
    names = [str(i) for i in range(len(slots))] if modules is None else modules
    written = {}
    for slot, name in _matched(slots, names):
        ours = _ours(slot)
        if channels_first:
            ours = _turned(ours, slot, into=False)
        arrays = _format(slot, table).write(ours, slot.layer)
        written[name] = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    return written
