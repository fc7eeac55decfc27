"""Parameters in safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.layer import InputError, PyTree


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
