"""Any acyclic network: named layers, each reading the outputs of others.

`Chain`, `Residual` and `Branch` cover nearly everything, and say in their shape what they do. `Graph` is
for the rest: U-Net skips, several inputs, several outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxbp.compose import MERGES
from jaxbp.layer import (
    Eval,
    Gather,
    InputError,
    Layer,
    Mode,
    Part,
    PyTree,
    add_errors,
    entries,
    inside,
    output_shape,
    require_parts,
)

Sources = str | tuple[str, ...]


@dataclass(frozen=True, repr=False, init=False)
class Graph(Layer):
    """Layers wired by name; each reads the graph's inputs or layers that were named before it.

        Graph(
            down=(Chain(Conv(8, 3), ReLU()), "x"),
            deep=(Chain(MaxPool(2), Conv(16, 3), ReLU(), ConvTranspose(8, 2, 2)), "down"),
            both=(Concat(), ("down", "deep")),
            y=(Conv(1, 1), "both"),
        )

    A layer that reads one name gets that value; one that reads a tuple of names gets the tuple of their
    values. `inputs` and `outputs` name the graph's own: a single name (by default `"x"`, and the last
    layer's) for a value, a tuple of names for a tuple of values. A name can only be read after it was
    given, so there are no cycles. Parameters: a tuple, one entry a layer, in order.

    A value that several layers read fans out, so its error is the sum over all of them, and over the
    graph's output where it is one:

        ∂L/∂h = Σ_{layers k that read h} (∂f_k/∂h)ᵀ ∂L/∂h_k

    Going through the layers from the last to the first, every reader of `h` has sent its part before
    `h` is reached, so each layer is walked once, however many paths lead through it. Keeps what the
    layers keep.

    Raises `InputError` for a name that is read before it is given, given twice, or never used.
    """

    names: tuple[str, ...]
    layers: tuple[Layer, ...]
    sources: tuple[Sources, ...]
    inputs: Sources
    outputs: Sources

    def __init__(
        self, *, inputs: Sources = "x", outputs: Sources | None = None, **nodes: tuple[Layer, Sources]
    ):
        if not nodes:
            raise InputError("Graph: expected at least one layer, got none")
        for name, node in nodes.items():
            if not (isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], Layer)):
                raise InputError(f"Graph: {name}: expected a pair (layer, names it reads), got {node!r}")
        fields = {
            "names": tuple(nodes),
            "layers": tuple(layer for layer, _ in nodes.values()),
            "sources": tuple(_frozen(source) for _, source in nodes.values()),
            "inputs": _frozen(inputs),
            "outputs": next(reversed(nodes)) if outputs is None else _frozen(outputs),
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        self._check_wiring()

    def _check_wiring(self) -> None:
        known, used = list(_names(self.inputs)), set(_names(self.outputs))
        for name, sources in zip(self.names, self.sources, strict=True):
            for source in _names(sources):
                if source not in known:
                    raise InputError(
                        f"Graph: {name} reads {source!r}, which is not given before it "
                        f"(so far: {', '.join(known)})"
                    )
            if name in known:
                raise InputError(f"Graph: {name!r} is given twice")
            known.append(name)
            used |= set(_names(sources))
        for name in _names(self.outputs):
            if name not in known:
                raise InputError(f"Graph: the output {name!r} is not given (given: {', '.join(known)})")
        if unused := [name for name in known if name not in used]:
            raise InputError(f"Graph: {', '.join(unused)}: given, but neither read nor an output")

    def init(self, key: Any, x: PyTree) -> PyTree:
        values, params = self._given(x), []
        keys = jax.random.split(key, len(self.layers))
        for name, layer, sources, k in zip(self.names, self.layers, self.sources, keys, strict=True):
            with inside(f"Graph[{name!r}]"):
                read = _read(values, sources)
                params.append(layer.init(k, read))
                values[name] = output_shape(layer, params[-1], read)
        return tuple(params)

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        require_parts(self, params, len(self.layers))
        values, saved = self._given(x), []
        modes = mode.split(len(self.layers))
        parts = zip(self.names, self.layers, self.sources, params, modes, strict=True)
        for name, layer, sources, p, m in parts:
            with inside(f"Graph[{name!r}]"):
                values[name], kept = layer.forward(p, _read(values, sources), m)
            saved.append(kept)
        return _read(values, self.outputs), tuple(saved)

    def backward(
        self, params: PyTree, saved: PyTree, dy: PyTree, gather: Gather | None = None
    ) -> tuple[PyTree, PyTree]:
        arrived: dict[str, list[PyTree]] = defaultdict(list)  # at each value, from all that read it
        _send(arrived, self.outputs, dy)
        gathered = []
        parts = list(zip(self.names, self.layers, self.sources, params, saved, strict=True))
        for name, layer, sources, p, s in reversed(parts):
            g, error = layer.backward(p, s, add_errors(*arrived.pop(name)), gather)
            _send(arrived, sources, error)
            gathered.append(g)
        errors = {name: add_errors(*arrived[name]) for name in _names(self.inputs)}
        return tuple(reversed(gathered)), _read(errors, self.inputs)

    def parts(self, params: PyTree, saved: PyTree = None) -> tuple[Part, ...]:
        return entries(self, "layers", params, saved)

    def whole(self, trees: Sequence[PyTree]) -> PyTree:
        return tuple(trees)

    def _given(self, x: PyTree) -> dict[str, PyTree]:
        if isinstance(self.inputs, str):
            return {self.inputs: x}
        if not isinstance(x, tuple | list) or len(x) != len(self.inputs):
            raise InputError(f"Graph: expected x as a tuple of {len(self.inputs)}: {self.inputs}")
        return dict(zip(self.inputs, x, strict=True))

    def __repr__(self) -> str:
        parts = zip(self.names, self.layers, self.sources, strict=True)
        shown = [f"inputs={self.inputs!r}"] * (self.inputs != "x")
        shown += [f"outputs={self.outputs!r}"] * (self.outputs != self.names[-1])
        shown += [f"{name}=({layer!r}, {sources!r})" for name, layer, sources in parts]
        return f"Graph({', '.join(shown)})"


def _frozen(sources: Any) -> Sources:
    return sources if isinstance(sources, str) else tuple(sources)


def _names(sources: Sources) -> tuple[str, ...]:
    return (sources,) if isinstance(sources, str) else sources


def _read(values: dict[str, PyTree], sources: Sources) -> PyTree:
    return values[sources] if isinstance(sources, str) else tuple(values[name] for name in sources)


def _send(arrived: dict[str, list[PyTree]], sources: Sources, error: PyTree) -> None:
    """The transpose of `_read`: to every value that was read, its part of the error."""
    if isinstance(sources, str):
        arrived[sources].append(error)
    else:
        for name, part in zip(sources, error, strict=True):
            arrived[name].append(part)


class _Merge(Layer):
    """A tuple of arrays made one, as `Branch` merges its bodies; no parameters."""

    merge = ""

    def forward(self, params: PyTree, x: PyTree, mode: Mode = Eval()) -> tuple[PyTree, PyTree]:
        if not isinstance(x, tuple | list) or not x or not all(hasattr(part, "dtype") for part in x):
            got = ", ".join(type(part).__name__ for part in x) if isinstance(x, tuple | list) else ""
            raise InputError(f"{self}: expected a tuple of arrays, got {got or type(x).__name__}")
        with inside(str(self)):
            return MERGES[self.merge].join(x)

    def pull(self, params: PyTree, saved: PyTree, dy: PyTree) -> tuple[PyTree, PyTree]:
        return tuple(MERGES[self.merge].part(saved, dy)), ()


@dataclass(frozen=True, repr=False)
class Add(_Merge):
    """`y = Σ_k x_k` of a tuple of arrays of one shape; `∂L/∂x_k = ∂L/∂y` for each. Keeps their number.

    Raises `InputError` where shapes or dtypes differ.
    """

    merge = "sum"


@dataclass(frozen=True, repr=False)
class Concat(_Merge):
    """The arrays of a tuple side by side along the last axis; each gets its own slice of the error back.

    Keeps where each begins. Raises `InputError` where they differ in any other axis.
    """

    merge = "concat"
