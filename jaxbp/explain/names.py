"""What a weight is called: the notes' `w212`, `b21`, `x3`, or a pytree path with an index."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxbp.explain.graph import Graph, Part
from jaxbp.explain.jacobian import Entry, floats
from jaxbp.layer import InputError


@dataclass(frozen=True)
class Target:
    """One entry of a parameter array (`part` is set) or of the input (`part` is `None`)."""

    name: str
    path: str
    part: Part | None
    leaf: int
    index: int
    value: float
    key: str
    place: tuple[int, ...]

    @property
    def entry(self) -> Entry:
        """Which of its part's parameters it is."""
        return self.leaf, self.index


def tokens(path: str) -> tuple[str, ...]:
    """`[1]['w'][3, 0]`, `1.w[3,0]` and `1/w/3/0` are all `("1", "w", "3", "0")`."""
    return tuple(re.findall(r"[^\W\d]\w*|\d+", path))


def notes_name(letter: str, layer: int | None, index: tuple[int, ...]) -> str:
    """`w212` for `(to, from) = (1, 2)` in layer 2; `w2_13_4` where a number has two digits.

    A kernel's entries say after that where in its window they are: `w1_4_2_3_1` leads to channel 4 from
    channel 2, in row 3 and column 1.
    """
    numbers = [str(k) for k in ((layer, *index) if layer is not None else index)]
    short = len(numbers) == 1 or (len(numbers) <= 3 and all(len(n) == 1 for n in numbers))
    bare = letter[-1].isalpha() and "_" not in letter
    return letter + ("" if bare else "_") + ("" if short else "_").join(numbers)


def ordered(place: tuple[int, ...]) -> tuple[int, ...]:
    """An entry's place as a name counts it, from 1: to, from, and then where in a window."""
    return tuple(k + 1 for k in (*reversed(place[-2:]), *place[:-2]))


def _place(numbers: Sequence[int]) -> tuple[int, ...]:
    """The place that `ordered` gives these numbers."""
    return tuple(k - 1 for k in (*numbers[2:], *reversed(numbers[:2])))


def arrays(graph: Graph) -> Iterator[tuple[Part, int, str, str, Any]]:
    """Every parameter array as its part sees it: `(part, leaf, key, path prefix, array)`."""
    paths = {
        tokens(jax.tree_util.keystr(path)): jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(graph.params)
    }
    seen: set[Any] = set()
    for part in graph.parts:
        if (part.address, part.slices) in seen:
            continue  # the second place of a tied weight
        if part.number is not None:
            seen.add((part.address, part.slices))
        for leaf, (path, array) in enumerate(jax.tree_util.tree_leaves_with_path(part.params)):
            own = tokens(jax.tree_util.keystr(path))
            full = paths.get((*part.address, *own), "".join(f"[{t}]" for t in (*part.address, *own)))
            yield part, leaf, own[-1] if own else "w", full, array


def make(part: Part, leaf: int, key: str, prefix: str, array: Any, place: tuple[int, ...]) -> Target:
    """The `Target` of the entry at `place` of a part's array."""
    inside = ", ".join(str(k) for k in (*part.slices, *place))
    path = f"{prefix}[{inside}]" if inside else prefix
    named = bool(place) and has_names(part, key)
    label = notes_name(key, part.number, ordered(place)) if named else path
    flat = int(np.ravel_multi_index(place, np.shape(array))) if place else 0
    return Target(label, path, part, leaf, flat, float(np.asarray(array)[place]), key, place)


def has_names(part: Part, key: str) -> bool:
    """Whether entries of a part's array are called by letter and number: where no other array is."""
    leaves = jax.tree_util.tree_leaves_with_path(part.params)
    same = [tokens(jax.tree_util.keystr(path))[-1:] for path, _ in leaves].count((key,))
    return same <= 1 and not any(c.isdigit() for c in key)


def everything(graph: Graph) -> Iterator[Target]:
    """Every weight and bias, layer by layer; within a matrix by neuron, then by where it comes from."""
    for part, leaf, key, prefix, array in arrays(graph):
        for reverse in np.ndindex(*reversed(np.shape(array))):
            yield make(part, leaf, key, prefix, array, tuple(reversed(reverse)))


def find(graph: Graph, asked: str) -> Target:
    """The weight that `asked` names, or an `InputError` that says what there is."""
    match = re.fullmatch(r"([^\W\d_](?:\w*?[^\W\d_])?)_?(\d+(?:_\d+)*)", asked.strip())
    if (match and match[1] == "x") or asked.strip() == "x":
        return _input(graph, asked, (match[2] if match else ""))
    if match:
        return _by_name(graph, asked, match[1], match[2])
    return _by_path(graph, asked)


def _input(graph: Graph, asked: str, digits: str) -> Target:
    block, shape = graph.input, graph.input.shape
    index = tuple(int(d) - 1 for d in digits.split("_")) if digits else ()
    if len(index) != len(shape) or not all(0 <= k < n for k, n in zip(index, shape, strict=True)):
        last = (
            block.neuron(block.value.size - 1) if block.value.size else "none: it holds no real numbers"
        )
        raise InputError(f"weight: the input has no {asked!r} (its last entry is {last})")
    flat = int(np.ravel_multi_index(index, shape)) if shape else 0
    return Target(block.neuron(flat), "x", None, 0, flat, float(block.value[flat]), "x", index)


def _by_name(graph: Graph, asked: str, letter: str, digits: str) -> Target:
    candidates = [a for a in arrays(graph) if a[2] == letter]
    if not candidates:
        raise InputError(
            f"weight: there is no parameter called {letter!r} for {asked!r}; {_offer(graph)}"
        )
    for part, leaf, key, prefix, array in candidates:
        shape = np.shape(array)
        numbers = digits.split("_") if "_" in digits else list(digits)
        if not shape or len(numbers) != len(shape) + 1 or int(numbers[0]) != part.number:
            continue
        place = _place([int(n) for n in numbers[1:]])
        if all(0 <= k < n for k, n in zip(place, shape, strict=True)):
            return make(part, leaf, key, prefix, array, place)
        ends = notes_name(letter, part.number, ordered(tuple(n - 1 for n in shape)))
        raise InputError(f"weight: there is no {asked!r}; in that layer {letter} goes up to {ends}")
    raise InputError(f"weight: cannot read {asked!r} (layer, to, from: w212 or w2_13_4); {_offer(graph)}")


def _by_path(graph: Graph, asked: str) -> Target:
    wanted = tokens(asked)
    for part, leaf, key, prefix, array in arrays(graph):
        own = (*tokens(prefix), *map(str, part.slices))
        rest = wanted[len(own) :]
        if wanted[: len(own)] != own or not all(t.isdigit() for t in rest):
            continue
        place = tuple(map(int, rest))
        shape = np.shape(array)
        if len(place) != len(shape) or not all(k < n for k, n in zip(place, shape, strict=True)):
            raise InputError(
                f"weight: {prefix} has shape {list(shape)}, so {asked!r} names no entry of it"
            )
        return make(part, leaf, key, prefix, array, place)
    raise InputError(f"weight: there is no {asked!r}; {_offer(graph)}")


def _offer(graph: Graph) -> str:
    """The first and last entry of a few arrays, to choose from."""
    shown = []
    for part, leaf, key, prefix, array in arrays(graph):
        last = tuple(n - 1 for n in np.shape(array))
        shown.append(make(part, leaf, key, prefix, array, last).name)
    more = f" and {len(shown) - 6} other arrays" if len(shown) > 6 else ""
    inputs = [graph.input.neuron(graph.input.value.size - 1)] if floats(graph.x) else []
    return "the last entries are " + ", ".join(shown[:6] + inputs) + more


def entry(target: Target, tree: Any) -> float | None:
    """The entry of `tree` (parameters, or their gradients) that a target names."""
    asked = tokens(target.path)
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        own = tokens(jax.tree_util.keystr(path))
        if asked[: len(own)] == own and len(asked) == len(own) + np.ndim(array):
            return float(np.asarray(array)[tuple(map(int, asked[len(own) :]))])
    return None
