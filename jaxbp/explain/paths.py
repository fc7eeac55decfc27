"""Paths through the graph: how many, their sum, and the largest, none of it by listing them all.

Going backwards from the loss, each neuron learns from its successors
    how many paths lead on from it           n_j = Σ_i n_i             (Python integers, exact)
    what all of them together contribute     δ_j = Σ_i ∂y_i/∂x_j δ_i
    what the largest of them contributes     m_j = max_i |∂y_i/∂x_j| m_i
in one pass over the edges. With `m` known for every neuron, the largest paths of all are found by always
extending the partial path whose best completion is largest.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array

from jaxbp.explain.graph import Block, Bundle, Web

LIMB = 24


@dataclass(frozen=True)
class Ahead:
    """What lies between the neurons of a block and the loss."""

    count: list[int]
    edges: list[int]
    error: np.ndarray
    best: np.ndarray


@dataclass
class Pass:
    """One pass from the loss back to wherever it is asked for; what it has found is kept."""

    graph: Web
    known: dict[int, Ahead] = field(default_factory=dict)

    def ahead(self, block: Block) -> Ahead:
        """`Ahead` of a block, computing those after it first."""
        stack = [block]
        while stack:
            top = stack[-1]
            waiting = [b.target for b in self.graph.leaving(top) if b.target.number not in self.known]
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if top.number not in self.known:
                self.known[top.number] = self._meet(top)
        return self.known[block.number]

    def _meet(self, block: Block) -> Ahead:
        if block is self.graph.end:
            return Ahead([1], [0], np.ones(1), np.ones(1))
        n = block.value.size
        count, edges, error, best = [0] * n, [0] * n, np.zeros(n), np.zeros(n)
        for bundle in self.graph.leaving(block):
            next_, matrix = self.known[bundle.target.number], bundle.jacobian
            more = add_integers(matrix, next_.count)
            count = list(map(int.__add__, count, more))
            longer = add_integers(matrix, next_.edges)
            edges = [e + l + m for e, l, m in zip(edges, longer, more, strict=True)]
            error = error + matrix @ next_.error
            best = np.maximum(best, strongest(matrix, next_.best))
        return Ahead(count, edges, error, best)

    def edges_from(self, blocks: list[Block]) -> int:
        """How many edges there are in all between these blocks and the loss, each counted once."""
        seen, waiting, total = set(), [*blocks], 0
        while waiting:
            top = waiting.pop()
            if top.number not in seen:
                seen.add(top.number)
                for bundle in self.graph.leaving(top):
                    total += bundle.jacobian.nnz
                    waiting.append(bundle.target)
        return total


def add_integers(matrix: csr_array, values: list[int]) -> list[int]:
    """`Σ_i values[i]` over the edges of each row, exactly: integers are cut into limbs of 24 bits."""
    limbs = max(1, -(-max(v.bit_length() for v in values) // LIMB)) if values else 1
    mask = (1 << LIMB) - 1
    cut = np.array([[(v >> (LIMB * k)) & mask for k in range(limbs)] for v in values], np.float64)
    pattern = csr_array((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
    sums = np.asarray(pattern @ cut.reshape(len(values), limbs))
    return [sum(int(limb) << (LIMB * k) for k, limb in enumerate(part)) for part in sums]


def strongest(matrix: csr_array, best: np.ndarray) -> np.ndarray:
    """`max_i |matrix[j, i]| best[i]` for each row `j`, 0 for a row without edges."""
    out = np.zeros(len(matrix.indptr) - 1)
    full = np.flatnonzero(np.diff(np.asarray(matrix.indptr)))
    if full.size:
        products = np.abs(matrix.data) * best[matrix.indices]
        out[full] = np.maximum.reduceat(products, matrix.indptr[full])
    return out


@dataclass(frozen=True)
class Step:
    """One neuron on a path, the derivative of it by the one before, and the bundle that edge is in."""

    block: Block
    index: int
    factor: float
    bundle: Bundle | None


Start = tuple[Block, csr_array, Bundle | None]


def largest(walk: Pass, start: list[Start], k: int) -> list[list[Step]]:
    """The `k` paths of largest absolute product; `start` are the edges of the weight itself, `[1, n]`.

    A partial path is worth its product times the best that can follow. The queue hands out the most
    valuable first (the longer one in a tie), so the complete paths come out in order, and nothing is
    extended that does not lie on one of them or compete with it.
    """
    order = itertools.count()
    queue: list[tuple[float, int, int, float, tuple[Step, ...]]] = []

    def extend(
        product: float,
        steps: tuple[Step, ...],
        target: Block,
        line: csr_array,
        row: int,
        bundle: Bundle | None = None,
    ) -> None:
        best = walk.ahead(target).best
        counts = walk.ahead(target).count
        low, high = line.indptr[row], line.indptr[row + 1]
        for i, factor in zip(line.indices[low:high].tolist(), line.data[low:high].tolist(), strict=True):
            if counts[i]:
                worth = abs(product * factor) * float(best[i])
                step = (*steps, Step(target, i, factor, bundle))
                worth = float(f"{worth:.12g}")  # equal but for rounding is a tie, in the neurons' order
                heapq.heappush(queue, (-worth, -len(step), next(order), product * factor, step))

    for target, line, bundle in start:
        extend(1.0, (), target, line, 0, bundle)
    found: list[list[Step]] = []
    while queue and len(found) < k:
        _, _, _, product, steps = heapq.heappop(queue)
        last = steps[-1]
        if last.block is walk.graph.end:
            found.append(list(steps))
            continue
        for bundle in walk.graph.leaving(last.block):
            extend(product, steps, bundle.target, bundle.jacobian, last.index, bundle)
    return found
