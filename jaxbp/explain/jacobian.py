"""Local derivatives of any layer, from its own backward pass: unit errors in, rows of the Jacobian out.

Pulling `e_i` (1 at output `i`, 0 elsewhere) through a layer returns `∂y_i/∂x_j` for every `j`, and the
gradient that it gathers is `∂y_i/∂w` for every parameter. Nothing here knows which layer it is.

A row has an *edge* where the derivative is not zero here, or where it is never zero at points drawn at
random: a weight that happens to be 0, or a unit that is off, still is a path, with a product of 0; the
inputs that lose in a maximum are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array, csr_array, vstack

from jaxbp.layer import Eval, InputError, Layer, Mode, PyTree

DRAWS = 4
CHUNK = 4_000_000
MOST = 400_000_000
FEW = 20_000

Entry = tuple[int, int]  # a parameter: the number of its array, and its own in it


def floats(tree: PyTree) -> list[Any]:
    """The floating leaves of a value (`None` and integers have no derivative)."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def flat(tree: PyTree) -> np.ndarray:
    """The floating entries of a value as one float64 vector: the neurons of a block, in order."""
    parts = [np.asarray(leaf, np.float64).reshape(-1) for leaf in floats(tree)]
    return np.concatenate(parts) if parts else np.zeros(0)


def size(tree: PyTree) -> int:
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in floats(tree))


def _unravel(like: PyTree, vector: Any) -> PyTree:
    """`vector` in the shape of `like`; integer leaves become `None`."""
    position = 0

    def take(leaf: Any) -> Any:
        nonlocal position
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return None
        count = int(np.prod(leaf.shape))
        part = vector[position : position + count].reshape(leaf.shape).astype(leaf.dtype)
        position += count
        return part

    return jax.tree.map(take, like)


def _ravel(tree: PyTree) -> Any:
    parts = [leaf.reshape(-1).astype(jnp.float64) for leaf in floats(tree)]
    return jnp.concatenate(parts) if parts else jnp.zeros(0)


def _nothing(layer: Layer, params: PyTree, saved: PyTree, delta: PyTree) -> tuple[()]:
    return ()


@partial(jax.jit, static_argnums=0)
def forward(layer: Layer, params: PyTree, x: PyTree, mode: Mode) -> Any:
    """`(y, saved)`, compiled."""
    return layer.forward(params, x, mode)


@partial(jax.jit, static_argnums=0)
def _rows(layer: Layer, params: PyTree, saved: PyTree, y: PyTree, units: Any) -> Any:
    """`∂y_i/∂x` for each unit error in `units: [rows, outputs]`."""
    return jax.vmap(lambda u: _ravel(layer.backward(params, saved, _unravel(y, u), _nothing)[1]))(units)


@partial(jax.jit, static_argnums=0)
def _by_parameter(layer: Layer, params: PyTree, saved: PyTree, y: PyTree, at: Any, units: Any) -> Any:
    """`∂y_i/∂w` for each unit error, of the entries `at[k]` of parameter array `k` (`None`: of none)."""

    def one(u: Any) -> Any:
        gradients = jax.tree.leaves(layer.backward(params, saved, _unravel(y, u))[0])
        asked = [(g, k) for g, k in zip(gradients, at, strict=True) if k is not None]
        return jnp.concatenate([g.reshape(-1)[k].astype(jnp.float64) for g, k in asked])

    return jax.lax.map(one, units)


def draw(layer: Layer, params: PyTree, x: PyTree, mode: Mode, number: int, signed: bool = False) -> Any:
    """`(params, x, y, saved)` at a point drawn at random, the same one for the same `number`.

    Values are positive unless `signed`, so that every unit with a threshold at 0 is on; weights are
    divided by what they are summed over, so that nothing saturates. Signed, points `2n` and `2n + 1`
    have opposite signs everywhere, so that every unit is seen on and off.
    """
    random = np.random.default_rng(number)
    signs = np.random.default_rng(number // 2)
    turn = 1.0 - 2.0 * (number % 2)

    def any_value(leaf: Any, weight: bool) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        shape = np.shape(leaf)
        value = random.uniform(0.3, 1.3, shape)
        if weight and len(shape) > 1:
            value = value / max(1, int(np.prod(shape[:-1])))
        elif signed and not weight:
            value = value * turn * signs.choice([-1.0, 1.0], shape)
        return jnp.asarray(value, leaf.dtype)

    params = jax.tree.map(partial(any_value, weight=True), params)
    x = jax.tree.map(partial(any_value, weight=False), x)
    y, saved = forward(layer, params, x, mode)
    return params, x, y, saved


def moves_only(layer: Layer, params: PyTree, x: PyTree, y: PyTree, mode: Mode) -> bool:
    """Whether the layer hands every entry on unchanged and in order (`Flatten`, evaluated `Dropout`)."""
    if jax.tree.leaves(params) or size(x) != size(y) or not size(x):
        return False
    key = (layer, str(jax.tree.map(lambda leaf: (jnp.shape(leaf), leaf.dtype), x)))
    if not isinstance(mode, Eval):
        return _moves_only(layer, params, x, mode)
    if key not in _MOVES:
        _MOVES[key] = _moves_only(layer, params, x, mode)
    return _MOVES[key]


_MOVES: dict[Any, bool] = {}  # of evaluation, which draws nothing


def _moves_only(layer: Layer, params: PyTree, x: PyTree, mode: Mode) -> bool:
    points = (draw(layer, params, x, mode, number, signed=True) for number in (98, 99))
    return all(np.array_equal(flat(at), flat(result)) for _, at, result, _ in points)


@dataclasses.dataclass(eq=False)
class Pattern:
    """Which entries of a layer's derivatives are edges, wherever it stands: found out when first asked.

    `params` and `x` lend their shapes; the values are drawn.
    """

    layer: Layer
    params: PyTree
    x: PyTree
    mode: Mode
    _touches: dict[Entry, np.ndarray] = dataclasses.field(default_factory=dict)

    @cached_property
    def points(self) -> list[Any]:
        """Points drawn at random, at which an edge shows whether it is one."""
        return [draw(self.layer, self.params, self.x, self.mode, number) for number in range(DRAWS)]

    @cached_property
    def edges(self) -> csr_array:
        """`[outputs, inputs]`, stored where the derivative is zero at none of the points."""
        (_, x, y, _), *_ = self.points
        inputs, outputs, found = size(x), size(y), []
        for start, units in unit_errors(inputs, outputs):
            always = np.ones((len(units), inputs), bool)
            for params, _, point_y, saved in self.points:
                always &= np.asarray(_rows(self.layer, params, saved, point_y, units)) != 0
            found.append(csr_array(always[: outputs - start]))
        return csr_array(vstack(found))

    def learn(self, entries: Sequence[Entry]) -> None:
        """Find out at once which outputs some of the parameters touch."""
        new = [entry for entry in entries if entry not in self._touches]
        if new:
            rows = [touches(self.layer, p, s, y, new) != 0 for p, _, y, s in self.points]
            self._touches |= zip(new, np.all(rows, axis=0).T, strict=True)

    def touches(self, entry: Entry) -> np.ndarray:
        """Whether there is an edge from a parameter to each output."""
        self.learn([entry])
        return self._touches[entry]


def unit_errors(inputs: int, outputs: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of the identity in chunks, `(number of the first, rows)`, the last filled up with zeros."""
    chunk = max(1, min(outputs, CHUNK // max(inputs, outputs)))
    for start in range(0, outputs, chunk):
        yield start, np.eye(chunk, outputs, start)


def edges(
    layer: Layer, params: PyTree, x: PyTree, y: PyTree, saved: PyTree, pattern: Pattern
) -> csr_array:
    """`[inputs, outputs]`: `∂y_i/∂x_j` at `[j, i]`, stored where there is an edge, 0 or not."""
    inputs, outputs = size(x), size(y)
    if inputs * outputs > MOST:
        raise InputError(
            f"{layer}: {inputs} × {outputs} local derivatives are too many to list; "
            "explain a smaller example (shorter, or of lower resolution)"
        )
    if not inputs or not outputs:
        return csr_array((inputs, outputs))
    found = []
    for start, units in unit_errors(inputs, outputs):
        here = np.asarray(_rows(layer, params, saved, y, units))[: outputs - start]
        always = pattern.edges[start : start + len(here), :].toarray()
        out, at = np.nonzero((here != 0) | always)
        found.append((here[out, at], at, out + start))
    data, rows, columns = (np.concatenate(part) for part in zip(*found, strict=True))
    return coo_array((data, (rows, columns)), (inputs, outputs)).tocsr()


def pulled(layer: Layer, params: PyTree, saved: PyTree, y: PyTree, errors: np.ndarray) -> np.ndarray:
    """`∂L/∂x` for each error `∂L/∂y` in `errors: [rows, outputs]`."""
    return np.asarray(_rows(layer, params, saved, y, errors))


def row(layer: Layer, params: PyTree, saved: PyTree, y: PyTree, output: int) -> np.ndarray:
    """`∂y_i/∂x` of one output `i`."""
    return pulled(layer, params, saved, y, np.eye(1, size(y), output))[0]


def touches(
    layer: Layer,
    params: PyTree,
    saved: PyTree,
    y: PyTree,
    entries: Sequence[Entry],
    outputs: Sequence[int] | None = None,
) -> np.ndarray:
    """`∂y_i/∂w`, `[outputs, entries]`: for every output `i` or for some, by some of the parameters."""
    asked: list[list[int]] = [[] for _ in jax.tree.leaves(params)]
    for leaf, index in entries:
        asked[leaf].append(index)
    # Few programs: lengths are powers of two, and an array that is cheap is asked for something anyway.
    at = tuple(
        np.resize(mine or [0], 1 << (max(1, len(mine)) - 1).bit_length())
        if mine or array.size <= FEW
        else None
        for mine, array in zip(asked, jax.tree.leaves(params), strict=True)
    )
    units = _units(size(y)) if outputs is None else np.zeros((len(outputs), size(y)))
    if outputs is not None:
        units[np.arange(len(outputs)), outputs] = 1.0
    found = np.asarray(_by_parameter(layer, params, saved, y, at, units))
    starts = np.cumsum([0, *(0 if k is None else len(k) for k in at)])
    order, seen = [], [0] * len(asked)
    for leaf, _ in entries:
        order.append(starts[leaf] + seen[leaf])
        seen[leaf] += 1
    return found[:, order]


@lru_cache(maxsize=16)
def _units(size: int) -> np.ndarray:
    """The rows of the identity, not made anew for every weight of a layer."""
    return np.eye(size)
