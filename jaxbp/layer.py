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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

# handed on: layers take all that the contract is made of from here
from jaxbp.bad_input import InputError as InputError
from jaxbp.bad_input import inside as inside
from jaxbp.bad_input import is_boolean as is_boolean
from jaxbp.bad_input import require_floating as require_floating
from jaxbp.bad_input import require_params as require_params
from jaxbp.bad_input import require_parts as require_parts
from jaxbp.bad_input import require_positive as require_positive
from jaxbp.bad_input import require_share as require_share
from jaxbp.bad_input import require_whole as require_whole
from jaxbp.bad_input import shape_text as shape_text
from jaxbp.bad_input import with_arrays, with_key_and_arrays

PyTree = Any
Gather = Callable[["Layer", PyTree, PyTree, PyTree], Any]


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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Every layer's own `init` is given a key, and it and `forward` JAX's arrays (`bad_input.py`)."""
        super().__init_subclass__(**kwargs)
        for name, before in (("init", with_key_and_arrays), ("forward", with_arrays)):
            if name in vars(cls):
                setattr(cls, name, before(vars(cls)[name]))

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

    # What single examples contribute to the gradient, which is a sum over them (`jaxbp.beyond`).

    def products(self, params: PyTree, saved: PyTree, delta: PyTree) -> dict[str, tuple[Any, ...]]:
        """`{name: (seen, error)}` for parameters whose gradient is one product, `Σ_rows seenᵀ error`.

        Both have the example axis first; `seen` is `None` for a bias, which meets a 1. A kernel of
        several axes counts as a matrix, all but its last axis as one. With a third entry, a number of
        groups, the last axes of `seen` and `error` fall into so many blocks, one after another, and the
        matrix has the product of each in its own columns. What is said here gives norms and curvature of
        single examples without their gradients.
        """
        return {}

    def rows(self, params: PyTree, saved: PyTree, delta: PyTree) -> dict[str, tuple[Any, Any]]:
        """`{name: (ids, error)}` for tables whose gradient is `error` added up in the rows `ids`."""
        return {}

    def gradient_of_each(self, params: PyTree, saved: PyTree, delta: PyTree) -> PyTree:
        """`∂L_n/∂params` of every example `n`, along a leading axis."""
        return jax.vmap(self.gradient, (None, 0, 0))(params, saved, delta)

    # Which parameters belong to which part: for whoever walks a network without knowing its layers.

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        """The parts of a combinator, in forward order, each with what of `params` and `saved` is its own.

        A leaf has none. A combinator that does not say (that leaves this default) is walked as one
        layer, through its own `backward`: nobody guesses.
        """
        return ()

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        """The inverse of `parts`: from a tree for every part to one shaped like this layer's params."""
        raise TypeError(f"{type(self).__name__} has no whole: a combinator with parts must write one")

    # What is not a derivative, with the defaults that all but a few layers want.

    fewest_examples: ClassVar[int] = 1
    """how many examples a batch must have for the statistics that training takes of it"""

    def trainable(self, params: PyTree) -> PyTree:
        """A mask of booleans shaped like `params`: `False` where an optimizer must not touch."""

        def mask(part: Part) -> PyTree:
            if _writes(part.layer, "trainable", self):
                return part.layer.trainable(part.params)
            return jax.tree.map(lambda _: True, part.params)

        return _each_leaf(self, "trainable", mask, params)

    def update_statistics(self, params: PyTree, saved: PyTree) -> PyTree:
        """`params` with running statistics moved towards those of the batch in `saved`."""

        def moved(part: Part) -> PyTree:
            if not _writes(part.layer, "update_statistics", self):
                return part.params
            update = part.layer.update_statistics
            for _ in part.copies:
                update = jax.vmap(update)
            return update(part.params, part.saved)

        return _each_leaf(self, "update_statistics", moved, params, saved)

    def __repr__(self) -> str:
        """The constructor call, without arguments left at their defaults."""
        text, todo = [], list[Any]([self])
        while todo:  # and not a call a level: networks may be nested deeply
            item = todo.pop()
            if isinstance(item, Layer) and not _overrides(item, "__repr__"):
                todo += reversed(item._call())
            else:
                text.append(item if isinstance(item, str) else repr(item))
        return "".join(text)

    def _call(self) -> list[str | Layer]:
        """The pieces of the constructor call: text, and the layers in it."""
        shown: list[list[str | Layer]] = []
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value, required = getattr(self, field.name), field.default is dataclasses.MISSING
            if required and isinstance(value, tuple) and isinstance(value[0], Layer):
                shown += [[_text(part)] for part in value]
            elif required:
                shown.append([_text(value)])
            elif value != field.default:
                shown.append([f"{field.name}=", _text(value)])
        between = [piece for argument in shown for piece in (", ", *argument)][1:]
        return [f"{type(self).__name__}(", *between, ")"]


def _text(value: Any) -> str | Layer:
    """A function by its name, since its `repr` has an address in it; anything else by its `repr`."""
    if isinstance(value, Layer):
        return value
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


def adds(add: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """Decorator: says how two results of a `gather` add, where one weight stands in two places (`Tied`).

    Any `gather` with an attribute or a method `add(first, last)` is understood; one without gets its two
    results back side by side, in the places of the two layers.
    """

    def mark(gather: Any) -> Any:
        gather.add = add
        return gather

    return mark


def add_errors(*errors: PyTree) -> PyTree:
    """`∂L/∂x = Σ_paths`: what arrives over parallel paths, added leaf by leaf.

    `None` (the error of an integer leaf, or of a path that does not exist) counts as zero.
    """

    def add(*parts: Any) -> Any:
        present = [part for part in parts if part is not None]
        return sum(present[1:], start=present[0]) if present else None

    return jax.tree.map(add, *errors, is_leaf=lambda leaf: leaf is None)


@adds(add_errors)
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


def leaves(layer: Layer) -> Iterator[tuple[str, Layer]]:
    """Every leaf with its path, in forward order: `("layers[1].body.layers[0]", Dense(8))`."""
    todo = [("", layer)]
    while todo:
        path, layer = todo.pop()
        if is_leaf(layer):
            yield path, layer
        todo += reversed([(f"{path}.{name}" if path else name, part) for name, part in children(layer)])


def smallest_batch(net: Layer) -> int:
    """How many examples a training batch of `net` must have at least: 2 where a `BatchNorm` is in it."""
    return max(leaf.fewest_examples for _, leaf in leaves(net))


def map_leaves(
    fn: Callable[[Layer], Layer], layer: Layer, stop: Callable[[Layer], bool] = is_leaf
) -> Layer:
    """The same network with every leaf (or whatever `stop` says is one) replaced by `fn(leaf)`."""
    done: list[Layer] = []  # what the layers visited so far have become, until their combinator takes it
    todo = [(layer, False)]
    while todo:
        layer, visited = todo.pop()
        if stop(layer):
            done.append(fn(layer))
        elif visited:
            count = sum(1 for _ in children(layer))
            parts = iter(done[len(done) - count :])
            del done[len(done) - count :]
            done.append(_with_children(layer, parts))
        else:
            todo += [(layer, True), *reversed([(part, False) for _, part in children(layer)])]
    return done[0]


def _with_children(layer: Layer, parts: Iterator[Layer]) -> Layer:
    """The combinator with other parts, in the order of `children`."""

    def taken(value: Any) -> Any:
        return next(parts) if isinstance(value, Layer) else value

    new = copy.copy(layer)
    for field in dataclasses.fields(layer):  # pyright: ignore[reportArgumentType]
        value = getattr(layer, field.name)
        other = tuple(map(taken, value)) if isinstance(value, tuple) else taken(value)
        object.__setattr__(new, field.name, other)
    return new


# --- and with what belongs to each layer --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """A layer in a combinator, and what of the whole belongs to it."""

    path: str  # its address: `layers[0]`, `body`, and from `walk` that in the network
    layer: Layer
    params: PyTree
    saved: PyTree = None
    gathered: PyTree = None
    at: tuple[int, ...] = ()  # the address of its parameters in those of the whole; empty: all of them
    copies: tuple[int, ...] = ()  # depths of the stacks around it: leading axes of all of its arrays
    shared: bool = False  # whether its parameters are those of a part before it (`Tied`)


def composed(layer: Layer) -> bool:
    """Whether `layer` is a combinator that says which parameters belong to which part."""
    return _overrides(layer, "parts")


def walk(
    net: Layer,
    params: PyTree,
    saved: PyTree = None,
    gathered: PyTree = None,
    *,
    apart: bool = False,
    stop: Callable[[Layer], bool] = lambda _: False,
) -> Iterator[Part]:
    """Every layer without `parts`, in forward order, with what belongs to it.

    `saved` is what `forward` kept, `gathered` what `backward` gathered. With `apart`, each copy in a
    `Stack` is a part of its own (`layers[1].body[0]`), one copy after another; otherwise its arrays
    keep their leading axes, and `copies` says so. `stop` says where not to look further inside.
    """
    todo = [Part("", net, params, saved, gathered)]
    while todo:
        part = todo.pop()
        inner = [] if stop(part.layer) else _inner(part, apart)
        if not inner:
            yield part
        todo += reversed(inner)


def rebuild(
    net: Layer,
    params: PyTree,
    trees: Iterable[PyTree],
    *,
    apart: bool = False,
    stop: Callable[[Layer], bool] = lambda _: False,
) -> PyTree:
    """The inverse of `walk`: a tree like `params` from one for every part that `walk` gives."""
    given, done = iter(trees), list[PyTree]()
    todo: list[tuple[Part, int]] = [(Part("", net, params), 0)]
    while todo:
        part, count = todo.pop()
        if count:
            made = done[len(done) - count :]
            whole = _stacked if apart and part.copies else part.layer.whole
            done[len(done) - count :] = [whole(made)]
        elif not stop(part.layer) and (inner := _inner(part, apart)):
            todo += [(part, len(inner)), *reversed([(one, 0) for one in inner])]
        else:
            done.append(next(given))
    return done[0]


def _inner(outer: Part, apart: bool) -> list[Part]:
    """The parts of a part, addressed from the network; with `apart`, a stack's copies one by one."""
    if apart and outer.copies:
        return [_copy(outer, i) for i in range(outer.copies[0])]
    inner = []
    for k, part in enumerate(outer.layer.parts(outer.params, outer.saved)):
        # what is gathered is nested as the layers are: an entry a part, or all of it for the only one
        gathered = outer.gathered[k] if part.at and outer.gathered is not None else outer.gathered
        inner.append(
            dataclasses.replace(
                part,
                path=f"{outer.path}.{part.path}" if outer.path else part.path,
                gathered=gathered,
                at=(*outer.at, *part.at),
                copies=(*outer.copies, *part.copies),
                shared=outer.shared or part.shared,
            )
        )
    return inner


def _copy(stacked: Part, i: int) -> Part:
    trees = ("params", "saved", "gathered")
    own = {name: jax.tree.map(lambda leaf: leaf[i], getattr(stacked, name)) for name in trees}
    return dataclasses.replace(stacked, path=f"{stacked.path}[{i}]", copies=(), **own)


def _stacked(copies: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *each: jnp.stack(each), *copies)


def _each_leaf(net: Layer, method: str, fn: Callable[[Part], PyTree], *trees: PyTree) -> PyTree:
    """`fn` of every layer that has no parts, or writes `method` of its own, put together again."""

    def own(layer: Layer) -> bool:
        return _writes(layer, method, net)

    return rebuild(net, trees[0], map(fn, walk(net, *trees, stop=own)), stop=own)


def _writes(layer: Layer, method: str, net: Layer) -> bool:
    """Whether a layer inside `net` has a `method` of its own (`net` itself asks for the default)."""
    return layer is not net and _overrides(layer, method)


def _overrides(layer: Layer, method: str) -> bool:
    return getattr(type(layer), method) is not getattr(Layer, method)


def entries(layer: Layer, field: str, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
    """`parts` of a combinator whose `params` and `saved` have an entry for every layer in `field`."""
    layers = getattr(layer, field)
    require_parts(layer, params, len(layers))
    kept = [None] * len(layers) if saved is None else saved
    each = enumerate(zip(layers, params, kept, strict=True))
    return tuple(Part(f"{field}[{i}]", part, p, s, at=(i,)) for i, (part, p, s) in each)


# --- shapes -----------------------------------------------------------------------------------------


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A hashable value (a shape, a dtype) that rides in `saved` as structure, not as an array."""

    value: Any


def output_shape(layer: Layer, params: PyTree, x: PyTree) -> PyTree:
    """The shapes and dtypes of `layer(params, x)`, without computing it."""
    return jax.eval_shape(layer, params, x)
