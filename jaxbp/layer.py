"""The contract: what a layer is, and the two equations of backpropagation.

A layer is a frozen dataclass of hyper-parameters; its parameters are a pytree kept outside. A *leaf*
writes `forward`, `pull` and `gradient`; a *combinator* (`compose.py`) writes `init`, `forward` and
`backward`. With `δ = ∂L/∂a` for the error at the layer,

    pull      δ travels:           ∂L/∂x = (∂y/∂x)ᵀ ∂L/∂y
    gradient  δ meets the input:   ∂L/∂w = (∂y/∂w)ᵀ δ

and a backward walk is `pull`, then whatever `gather` makes of `δ` (by default, `gradient`).
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

PyTree = Any
Gather = Callable[["Layer", PyTree, PyTree, PyTree], Any]


class InputError(ValueError):
    """Bad input: what was wrong, where, and what was expected. Combinators prepend where."""

    def __init__(self, message: str, where: tuple[str, ...] = ()):
        super().__init__(message)
        self.message, self.where = message, where

    def __str__(self) -> str:
        return " > ".join((*self.where, "")) + self.message if self.where else self.message


@contextmanager
def inside(place: object) -> Iterator[None]:
    """Add `place` to the address of any `InputError` raised in this block."""
    try:
        yield
    except InputError as error:
        raise InputError(error.message, (str(place), *error.where)) from None


# --- mode -------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation: nothing is random, statistics are the running ones."""

    def split(self, count: int) -> tuple[Eval, ...]:
        return (self,) * count

    def stack(self, count: int) -> Eval:
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Train:
    """Training. `key` is a `jax.random` key; only layers that draw (`Dropout`) need one.

    A combinator hands every part a key of its own: `split` for parts side by side, `stack` for the
    slices of a scan.
    """

    key: Any = None

    def split(self, count: int) -> tuple[Train, ...]:
        if self.key is None:
            return (self,) * count
        return tuple(Train(key) for key in jax.random.split(self.key, count))

    def stack(self, count: int) -> Train:
        return self if self.key is None else Train(jax.random.split(self.key, count))


Mode = Train | Eval


# --- the contract -----------------------------------------------------------------------------------


class Layer(ABC):
    """A function of `(params, x)` whose derivative is written by hand.

    Subclasses are frozen dataclasses without arrays, so that a layer is hashable and can be closed
    over or passed as a static argument. Leading axes of `x` are batch axes. Arrays in `saved` and
    `delta` that belong to examples have the example axis first, so that
    `jax.vmap(layer.gradient, (None, 0, 0))` gives per-example gradients.
    """

    def init(self, key: Any, x: PyTree) -> PyTree:
        """Fresh parameters for inputs like `x` (an array or a `jax.ShapeDtypeStruct`)."""
        return ()

    @abstractmethod
    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        """`(y, saved)`; `saved` is a pytree with exactly what `pull` and `gradient` need."""

    def pull(self, params: PyTree, saved: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        """`(dx, delta)`: carry the error from the output back to the input."""
        raise TypeError(
            f"{type(self).__name__} has no pull: a leaf layer must write one, "
            "a combinator is walked with backward"
        )

    def gradient(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        """`∂L/∂params` from the error `delta`; same structure, shapes and dtypes as `params`."""
        return ()

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        """`(gathered, dx)`: the walk. `gather(layer, params, saved, delta)` is called at every leaf."""
        dx, delta = self.pull(params, saved, dy)
        return (gather or gradient)(self, params, saved, delta), dx

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        """Evaluate; nothing is kept."""
        return self.forward(params, x, Eval())[0]

    # What is not a derivative, with the defaults that all but a few layers want.

    fewest_examples: ClassVar[int] = 1
    """how many examples a batch must have for the statistics that training takes of it"""

    def trainable(self, params: PyTree) -> PyTree:
        """A mask of booleans shaped like `params`: `False` where an optimizer must not touch."""
        return jax.tree.map(lambda _: True, params)

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        """`params` with running statistics moved towards those of the batch in `saved`."""
        return params

    def __repr__(self) -> str:
        """The constructor call, without arguments left at their defaults."""
        shown = []
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value, required = getattr(self, field.name), field.default is dataclasses.MISSING
            if required and isinstance(value, tuple) and isinstance(value[0], Layer):
                shown.append(", ".join(map(repr, value)))
            elif required:
                shown.append(_text(value))
            elif value != field.default:
                shown.append(f"{field.name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _text(value: Any) -> str:
    """A function by its name, since its `repr` has an address in it; anything else by its `repr`."""
    is_function = callable(value) and not isinstance(value, Layer) and hasattr(value, "__name__")
    return value.__name__ if is_function else repr(value)


def gradient(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
    """The default `gather`: the parameter gradient of every leaf."""
    return layer.gradient(params, saved, delta)


def is_training(mode: Mode) -> bool:
    """Whether `mode` is `Train`; raises `InputError` if it is no mode at all."""
    if not isinstance(mode, Train | Eval):
        raise InputError(f"mode: expected Train(key) or Eval(), got {mode!r}")
    return isinstance(mode, Train)


# --- walking the layer tree without naming a layer ---------------------------------------------------


def is_leaf(layer: Layer) -> bool:
    """Whether `layer` writes its own derivative (it has no layers among its fields)."""
    return not any(True for _ in children(layer))


def children(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """The parts of a combinator, each with its address in it: `layers[0]`, `body`."""
    for field in dataclasses.fields(layer):  # pyright: ignore[reportArgumentType]
        value = getattr(layer, field.name)
        if isinstance(value, Layer):
            yield field.name, value
        elif isinstance(value, tuple):
            for i, part in enumerate(value):
                if isinstance(part, Layer):
                    yield f"{field.name}[{i}]", part


def leaves(layer: Layer, path: str = "") -> Iterator[tuple[str, Layer]]:
    """Every leaf with its path, in forward order: `("layers[1].body.layers[0]", Dense(8))`."""
    if is_leaf(layer):
        yield path, layer
    for name, part in children(layer):
        yield from leaves(part, f"{path}.{name}" if path else name)


def smallest_batch(net: Layer) -> int:
    """How many examples a training batch of `net` must have at least: 2 where a `BatchNorm` is in it."""
    return max(leaf.fewest_examples for _, leaf in leaves(net))


def map_leaves(fn: Callable[[Layer], Layer], layer: Layer) -> Layer:
    """The same network with every leaf replaced by `fn(leaf)`."""
    if is_leaf(layer):
        return fn(layer)

    def rebuild(value: Any) -> Any:
        if isinstance(value, Layer):
            return map_leaves(fn, value)
        return tuple(map(rebuild, value)) if isinstance(value, tuple) else value

    new = copy.copy(layer)
    for field in dataclasses.fields(layer):  # pyright: ignore[reportArgumentType]
        object.__setattr__(new, field.name, rebuild(getattr(layer, field.name)))
    return new


# --- shapes -----------------------------------------------------------------------------------------


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A hashable value (a shape, a dtype) that rides in `saved` as structure, not as an array."""

    value: Any


def output_shape(layer: Layer, params: PyTree, x: PyTree) -> PyTree:
    """The shapes and dtypes of `layer(params, x)`, without computing it."""
    return jax.eval_shape(layer, params, x)


def is_boolean(x: Any) -> bool:
    """Whether `x` is an array of booleans."""
    return hasattr(x, "dtype") and x.dtype == jnp.bool_


def shape_text(x: Any) -> str:
    """`f32[8,64]`-like text for messages: `float32[8, 64]`; for what is not an array, its type."""
    if not hasattr(x, "dtype"):
        return type(x).__name__
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"


def require_params(layer: Layer, params: Any, *names: str) -> None:
    """Raise `InputError` unless `params` is a dict with these entries."""
    if not isinstance(params, Mapping) or set(names) - set(params):
        got = ", ".join(params) or "none" if isinstance(params, Mapping) else repr(type(params).__name__)
        raise InputError(f"{layer}: expected params {', '.join(names)}, got {got} (of another network?)")


def require_share(value: Any, what: str) -> None:
    """Raise `InputError` unless `value` is a number of [0, 1)."""
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise InputError(f"{what} must be in [0, 1), got {value!r}")


def require_positive(value: Any, what: str, hint: str = "") -> None:
    """Raise `InputError` unless `value` is a number above 0."""
    if not isinstance(value, Real) or not float(value) > 0:
        raise InputError(f"{what} must be positive, got {value!r}{hint}")


def require_floating(x: Any, what: str) -> None:
    """Raise `InputError` unless `x` is an array of floating dtype."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        got = shape_text(x) if hasattr(x, "dtype") else type(x).__name__
        raise InputError(f"{what}: expected an array of floating dtype, got {got}")
