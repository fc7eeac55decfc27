"""A network as a graph of neurons, whose edges carry local derivatives.

Neurons stand in *blocks*, one for every value in the forward pass; a leaf layer (a `Part`) is what leads
from the blocks it takes to the blocks it makes, in *bundles* of edges. `wire.py` lays a network out as
such a graph; `paths.py` counts and finds paths in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array, csr_array

from jaxbp.explain import jacobian
from jaxbp.layer import Layer, Mode, PyTree
from jaxbp.losses import Loss


@dataclasses.dataclass(eq=False)
class Block:
    """The neurons of one value. `layer` is the number of the weight layer it belongs to, 0 = input.

    `time` is the step of a recurrence that it belongs to, from 1, where it belongs to one.
    """

    letter: str
    layer: int | None
    shape: tuple[int, ...]
    value: np.ndarray
    number: int = 0
    time: int | None = None

    @property
    def name(self) -> str:
        """`a2` for the block of `a21`, `a22`, …; `h1_3` for step 3 of a recurrence."""
        stem = self.letter.rstrip("'")
        shown = "" if self.layer is None else str(self.layer)
        step = "" if self.time is None else f"_{self.time}"
        return stem + shown + step + self.letter[len(stem) :]

    def neuron(self, i: int) -> str:
        """`a21`, or `a2_13` where an index has two digits, or `a2_3_1_4` in a block of more axes."""
        if not self.shape:
            return self.name
        index = [str(k + 1) for k in np.unravel_index(i, self.shape)]
        short = len(index[0]) == 1 and (self.layer or 0) < 10
        plain = len(index) == 1 and (self.layer is None or short) and self.time is None
        stem = self.name
        return stem + index[0] if plain and "'" not in stem else "_".join([stem, *index])


class Run(NamedTuple):
    """Neurons `start … stop - 1` of a block; without a block, numbers to which no path leads."""

    block: Block | None
    start: int
    stop: int


Wires = tuple[Run, ...]  # the neurons that the floating entries of a value are, in order


def whole(block: Block) -> Wires:
    return (Run(block, 0, block.value.size),)


def joined(wires: Iterable[Run]) -> Wires:
    """The same neurons in as few runs as possible."""
    made: list[Run] = []
    for run in wires:
        if made and made[-1].block is run.block and made[-1].stop == run.start:
            made[-1] = Run(run.block, made[-1].start, run.stop)
        elif run.stop > run.start:
            made.append(run)
    return tuple(made)


def cut(wires: Wires, sizes: Iterable[int]) -> list[Wires]:
    """Wires in pieces of the given sizes."""
    runs, pieces = list(wires), []
    for size in sizes:
        piece: list[Run] = []
        while size:
            block, start, stop = runs.pop(0)
            taken = min(size, stop - start)
            piece.append(Run(block, start, start + taken))
            if start + taken < stop:
                runs.insert(0, Run(block, start + taken, stop))
            size -= taken
        pieces.append(tuple(piece))
    return pieces


def neuron(wires: Wires, index: int) -> str | None:
    """The name of entry `index` of a value."""
    for block, start, stop in wires:
        if index < stop - start:
            return None if block is None else block.neuron(start + index)
        index -= stop - start
    return None


@dataclasses.dataclass(eq=False)
class Bundle:
    """All edges from block `source` to block `target`; `jacobian[j, i] = ∂target_i/∂source_j`.

    Where a part takes or makes several blocks, `rows` and `columns` say which of its inputs are neurons
    of `source` and which of its outputs of `target`: the first of them, its place in the block, how many.
    """

    source: Block
    target: Block
    part: Part | None
    rows: tuple[int, int, int] = (0, 0, 0)
    columns: tuple[int, int, int] = (0, 0, 0)
    found: csr_array | None = None

    @property
    def jacobian(self) -> csr_array:
        """Computed when first asked for: what lies before the weight at hand is never needed."""
        if self.found is None:
            assert self.part is not None
            (row, j, rows), (column, i, columns) = self.rows, self.columns
            piece = self.part.edges[row : row + rows, column : column + columns]
            self.found = placed(piece, j, i, (self.source.value.size, self.target.value.size))
        return self.found

    def inside(self, j: int, i: int) -> tuple[int, int]:
        """The part's input that is `source_j`, and its output that is `target_i`."""
        return j - self.rows[1] + self.rows[0], i - self.columns[1] + self.columns[0]


def placed(matrix: Any, row: int, column: int, shape: tuple[int, int]) -> csr_array:
    """`matrix` as a piece of a larger one; what is stored stays stored, 0 or not."""
    if matrix.shape == shape:
        return csr_array(matrix)
    piece = coo_array(matrix)
    at = (piece.coords[0] + row, piece.coords[1] + column)
    return coo_array((piece.data, at), shape).tocsr()


@dataclasses.dataclass(eq=False)
class Part:
    """A leaf (or a combinator that is not known) at work: all that its derivatives are made from.

    `inputs` and `outputs` are the neurons of `x` and `y`, and `target` the block that it is named by.
    Parts with one `pattern` are the same layer at several places: which entries are edges is found once.
    """

    layer: Layer
    params: PyTree
    x: PyTree
    y: PyTree
    saved: PyTree
    mode: Mode
    number: int | None
    address: tuple[str, ...]
    slices: tuple[int, ...]
    inputs: Wires
    outputs: Wires
    target: Block
    pattern: jacobian.Pattern
    _met: dict[jacobian.Entry, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> Block | None:
        """The block that it takes, where it takes a single one as it is."""
        runs = joined(self.inputs)
        block = runs[0].block if len(runs) == 1 else None
        return block if block is not None and runs == whole(block) else None

    @cached_property
    def edges(self) -> csr_array:
        """The edges through the part, with their derivatives: `[inputs, outputs]`."""
        return jacobian.edges(self.layer, self.params, self.x, self.y, self.saved, self.pattern)

    def learn(self, entries: Sequence[jacobian.Entry]) -> None:
        """Find out at once what some of the parameters touch, and by how much."""
        new = [entry for entry in entries if entry not in self._met]
        if new:
            self.pattern.learn(new)
            self._met |= zip(new, self.slopes(new).T, strict=True)

    def slopes(
        self, entries: Sequence[jacobian.Entry], outputs: Sequence[int] | None = None
    ) -> np.ndarray:
        """`∂output/∂w`, `[outputs, entries]`, of all of the part's outputs or of some."""
        return jacobian.touches(self.layer, self.params, self.saved, self.y, entries, outputs)

    def touched(self, entry: jacobian.Entry) -> list[tuple[Block, csr_array]]:
        """The edges from one of the part's parameters to the neurons that it touches directly."""
        self.learn([entry])
        here = self._met[entry]
        at = np.flatnonzero((here != 0) | self.pattern.touches(entry))
        row = coo_array((here[at], (np.zeros_like(at), at)), (1, here.size)).tocsr()
        position, found = 0, []
        for block, start, stop in self.outputs:
            piece = row[:, position : position + stop - start]
            position += stop - start
            if block is not None and piece.nnz:
                found.append((block, placed(piece, 0, start, (1, block.value.size))))
        return found

    def output(self, block: Block, i: int) -> int | None:
        """Which of the part's outputs is neuron `i` of a block."""
        position = 0
        for made, start, stop in self.outputs:
            if made is block and start <= i < stop:
                return position + i - start
            position += stop - start
        return None


class Web:
    """Blocks in forward order, the last of them a single neuron, and the bundles between them."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._leaving: dict[int, list[Bundle]] = {}

    @property
    def end(self) -> Block:
        """What is differentiated: the loss, a block of one."""
        return self.blocks[-1]

    def connect(self, bundle: Bundle) -> None:
        self._leaving.setdefault(id(bundle.source), []).append(bundle)

    def leaving(self, block: Block) -> list[Bundle]:
        return self._leaving.get(id(block), [])


@dataclasses.dataclass(eq=False)
class Graph(Web):
    """A network at work on one example, and its parts in forward order."""

    net: Layer
    loss: Loss
    params: PyTree
    x: PyTree
    y: Any
    mode: Mode
    parts: list[Part] = dataclasses.field(default_factory=list)
    value: float = 0.0
    predicted: PyTree = None

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def input(self) -> Block:
        return self.blocks[0]

    @property
    def prediction(self) -> Block | None:
        """The block of the prediction, where the whole of it stands in one."""
        last = self.blocks[-2]
        alone = all(
            b.source is last for block in self.blocks for b in self.leaving(block) if b.target is self.end
        )
        return last if alone and last.value.size == jacobian.size(self.predicted) else None

    def maker(self, block: Block) -> Part | None:
        """The part that makes a block."""
        return next((p for p in self.parts if any(run.block is block for run in p.outputs)), None)

    def outputs(self, part: Part, shown: Sequence[Sequence[int]]) -> dict[tuple[int, int], int]:
        """`{(block, i): output}` of a part's outputs that are among each block's neurons `shown`."""
        blocks = {run.block.number: run.block for run in part.outputs if run.block is not None}
        places = [(block, i) for block in blocks.values() for i in shown[block.number]]
        found = {(block.number, i): part.output(block, i) for block, i in places}
        return {place: output for place, output in found.items() if output is not None}

    def add(self, letter: str, layer: int | None, value: PyTree, time: int | None = None) -> Block:
        """A new block; primes are added to the letter until the name is its own."""
        names = {block.name for block in self.blocks}
        shapes = [jnp.shape(leaf) for leaf in jacobian.floats(value)]
        shape = shapes[0] if len(shapes) == 1 else (jacobian.size(value),)
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        block = Block(letter, layer, shape, jacobian.flat(value), len(self.blocks), time)
        while block.name in names:
            block.letter += "'"
        self.blocks.append(block)
        return block

    def lead(self, wires: Wires, target: Block, matrix: Any) -> None:
        """Bundles from the neurons of `wires` to a block, with derivatives `matrix: [wires, target]`."""
        position = 0
        for block, start, stop in wires:
            piece, position = matrix[position : position + stop - start, :], position + stop - start
            if block is not None:
                shape = (block.value.size, target.value.size)
                found = placed(piece, start, 0, shape)
                self.connect(Bundle(block, target, None, found=found))

    def lead_through(self, part: Part) -> None:
        """The bundles of a part: one for every block that it takes and block that it makes."""
        self.parts.append(part)
        row = 0
        for source, start, stop in part.inputs:
            column = 0
            for target, first, last in part.outputs:
                if source is not None and target is not None:
                    rows, columns = (row, start, stop - start), (column, first, last - first)
                    self.connect(Bundle(source, target, part, rows, columns))
                column += last - first
            row += stop - start
