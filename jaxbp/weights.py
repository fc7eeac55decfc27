"""Weights in and out: safetensors files, PyTorch `state_dict`s and Flax variables.

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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.foreign import FLAX, TORCH, Format, full_name, grouped
from jaxbp.layer import InputError, Layer, PyTree, Train, inside, rebuild, walk
from jaxbp.layers import Flatten
from jaxbp.record import each_passed, record

Arrays = Mapping[str, Any]


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
        elif jax.tree.leaves(part.params):
            image = None
    return images


def _with_parameters(slots: Sequence[_Slot]) -> list[_Slot]:
    return [slot for slot in slots if jax.tree.leaves(slot.params)]


def _rows(w: np.ndarray, slot: _Slot, into: bool) -> np.ndarray:
    """Rows of a Dense weight after a Flatten of `[*positions, channels]`, from or to channels first."""
    if slot.image is None or w.shape[0] != prod(slot.image):
        return w
    *positions, channels = slot.image
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
    image leads into a `Dense`. `modules` gives the names of torch's modules in the order of our layers
    (`["features.0", "features.3", "classifier"]`), where that is not the order of the `state_dict`.

    Numbers in names go before the order of the `state_dict` (`2` before `10`); where it was sorted, as
    safetensors does, so does what fits a layer. Without `x`, an image that is flattened is an error.

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


def _format(slot: _Slot, table: dict[str, Format]) -> Format:
    kind = type(slot.layer).__name__
    if kind not in table:
        raise InputError(f"{slot.path}: {kind} has no counterpart (there is one for {', '.join(table)})")
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
    slots: Sequence[_Slot], groups: dict[str, dict[str, np.ndarray]], table: dict[str, Format]
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
        kind = type(slot.layer).__name__
        if kind in ("Conv", "ConvTranspose"):
            channels = getattr(slot.layer, "features", 0)
        elif kind in ("MaxPool", "AvgPool"):
            channels = channels or 0
        elif kind == "GlobalAvgPool":
            channels = None
        elif kind == "Flatten":
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
    table: dict[str, Format],
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
    if channels_first and type(slot.layer).__name__ == "Dense":
        new["w"] = _rows(new["w"], slot, into=True)
    return {key: jnp.asarray(array, slot.params[key].dtype) for key, array in new.items()}


def _write(
    net: Layer,
    params: PyTree,
    table: dict[str, Format],
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
        if channels_first and type(slot.layer).__name__ == "Dense":
            ours["w"] = _rows(ours["w"], slot, into=False)
        arrays = _format(slot, table).write(ours, slot.layer)
        written[name] = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    return written


# --- safetensors --------------------------------------------------------------------------------------


def path_name(path: Any) -> str:
    """A pytree path as a dotted name: `0.w`."""
    return ".".join(
        str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path
    )


# what safetensors reads and writes in NumPy; of other dtypes the bytes are stored, along one more axis
STORED = {"bool", "float16", "bfloat16", "float32", "float64", "complex64"}
STORED |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


def save_params(path: Path | str, params: PyTree) -> None:
    """`params` as safetensors, each named by its pytree path (`0.w`); written whole or not at all.

    Arrays of any shape and any dtype of numbers. What safetensors has no name for (`int4`, `float8_e3m4`,
    `complex128`, …) is stored as bytes, and its dtype in the file's metadata. Raises `InputError` for
    what is not numbers (a random key, text) and for two parameters of one name.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    named: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for at, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(at)
        if name in named:
            raise InputError(f"{path}: two parameters are called {name}")
        array = _numbers(name, leaf)
        if array.dtype.name not in STORED:
            metadata[name] = array.dtype.name
            array = np.ascontiguousarray(array[..., None]).view(np.uint8)
        named[name] = np.asarray(array, order="C")  # `ascontiguousarray` makes a vector of a scalar
    partial = path.with_suffix(".partial")
    save_file(named, partial, metadata)
    partial.replace(path)


def _numbers(name: str, leaf: Any) -> np.ndarray:
    """`leaf` as an array of numbers."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise InputError(
            f"{name}: a random key ({dtype}) cannot be saved; jax.random.key_data makes numbers"
        )
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMmT" or array.dtype.names:
        raise InputError(
            f"{name}: expected an array of numbers, got {array.dtype} ({type(leaf).__name__})"
        )
    return array


def load_params(path: Path | str, like: PyTree, *, dtype: Any = None) -> PyTree:
    """The parameters in a safetensors file, in the structure of `like` (shapes will do).

    Each keeps the dtype that it has in the file, float64 also where JAX does not compute in it; with
    `dtype="like"` it takes that of its counterpart in `like`, with another dtype every floating one does.

    Raises `InputError` for a file that is missing or broken, and for a parameter that is missing or of
    another shape.
    """
    path = Path(path)
    named = _read_file(path)
    leaves = jax.tree_util.tree_leaves_with_path(like)
    expected = {path_name(at): leaf for at, leaf in leaves}
    loaded = []
    for name, leaf in expected.items():
        if name not in named:
            raise InputError(f"{path}: expected a parameter {name}, got {', '.join(named) or 'none'}")
        array = named[name]
        if array.shape != jnp.shape(leaf):
            raise InputError(
                f"{path}: {name}: expected shape {list(jnp.shape(leaf))}, got {list(array.shape)}"
            )
        if dtype == "like":
            array = array.astype(jnp.result_type(leaf))
        elif dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(jnp.dtype(dtype))
        with jax.enable_x64(True):  # else JAX would cut float64 and int64 in half
            loaded.append(jnp.asarray(array))
    return jax.tree.unflatten(jax.tree.structure(like), loaded)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        named = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not safetensors: {error}") from None
    for name, kind in metadata.items():
        if name in named and named[name].dtype == np.uint8:
            named[name] = named[name].view(jnp.dtype(kind))[..., 0]
    return named
