"""One moment of training, as the page shows it: values, errors, local derivatives and gradients.

Only what is drawn is computed. A part pulls the error of what it makes, once, and a unit error for each
neuron that is shown: a few rows, where a Jacobian of all neurons has thousands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxbp.explain import jacobian, names
from jaxbp.explain.example import Example
from jaxbp.explain.graph import Bundle, Part
from jaxbp.explain.seen import Seen
from jaxbp.layer import PyTree

Edges = list[tuple[int, int]]  # `(neuron of the source, neuron of the target)`
Asked = tuple[dict[str, Any], names.Target]  # a weight as the page knows it, and as the graph does


@dataclass(frozen=True)
class Frame:
    """The parameters at one moment of training."""

    label: str
    params: PyTree


def moment(
    first: Example,
    frame: Frame,
    shown: list[list[int]],
    pairs: list[Edges],
    targets: list[Asked],
    seen: Seen,
) -> dict[str, Any]:
    """What there is to show with the frame's parameters.

    `shown` are the neurons of every block that are drawn, `pairs` the edges between them by bundle.
    """
    now = first if frame.params is first.params else first.at(frame.params)
    blocks = now.graph.blocks
    errors, factors = back(now, pairs)
    if now is first:  # the numbers of the explanation, which knows them: a 0 is one to the last bit
        errors = [first.error(block) for block in blocks]

    def pick(vectors: list[np.ndarray]) -> list[list[float]]:
        return [[float(v[i]) for i in rows] for v, rows in zip(vectors, shown, strict=True)]

    return {
        "label": frame.label,
        "loss": now.graph.value,
        "answer": seen.answer(now),
        "values": pick([block.value for block in blocks]),
        "errors": pick(errors),
        "factors": factors,
        "weights": [
            t.value if t.part is None else float(names.entry(t, now.params) or 0.0) for _, t in targets
        ],
        "gradients": [now.gradient(t) for _, t in targets],
        "starts": _starts(now, shown, pairs, factors, targets),
    }


def bundles(example: Example) -> list[Bundle]:
    """All bundles, in the order of the blocks that they leave."""
    return [bundle for block in example.graph.blocks for bundle in example.graph.leaving(block)]


def back(now: Example, pairs: list[Edges]) -> tuple[list[np.ndarray], list[list[float]]]:
    """`∂L/∂` every neuron, block by block, and the derivatives on the edges `pairs`, bundle by bundle.

    From the loss back, `∂L/∂source = Σ over the bundles that leave it of (∂target/∂source)ᵀ ∂L/∂target`.
    """
    graph = now.graph
    errors = [np.zeros(block.value.size) for block in graph.blocks]
    errors[graph.end.number] = np.ones(1)
    known = bundles(now)
    factors: list[list[float]] = [[] for _ in known]
    for k in reversed(range(len(known))):
        bundle, edges = known[k], pairs[k]
        arriving = errors[bundle.target.number]
        if bundle.part is None:
            matrix = bundle.jacobian
            errors[bundle.source.number] += matrix @ arriving
            factors[k] = [float(matrix[j, i]) for j, i in edges]
        else:
            more, factors[k] = _pulled(bundle, bundle.part, arriving, edges)
            errors[bundle.source.number] += more
    return errors, factors


def _pulled(
    bundle: Bundle, part: Part, arriving: np.ndarray, edges: Edges
) -> tuple[np.ndarray, list[float]]:
    """What the part carries back to the source of the error at the target, and what is on the edges."""
    (row, j, rows), (column, i, columns) = bundle.rows, bundle.columns
    inside = [bundle.inside(*edge) for edge in edges]
    outputs = sorted({output for _, output in inside})
    units = np.zeros((1 + len(outputs), jacobian.size(part.y)))
    units[0, column : column + columns] = arriving[i : i + columns]
    units[np.arange(1, len(units)), outputs] = 1.0
    found = jacobian.pulled(part.layer, part.params, part.saved, part.y, units)
    error = np.zeros(bundle.source.value.size)
    error[j : j + rows] = found[0, row : row + rows]
    place = {output: k for k, output in enumerate(outputs, 1)}
    return error, [float(found[place[output], at]) for at, output in inside]


def _starts(
    now: Example,
    shown: list[list[int]],
    pairs: list[Edges],
    factors: list[list[float]],
    targets: list[Asked],
) -> list[list[float]]:
    """`∂n/∂w` for the neurons at which each weight's paths begin, as listed in its record."""
    ends = [[(end["to"], end["i"]) for end in record["start"]] for record, _ in targets]
    slopes: list[dict[tuple[int, int], float]] = [{} for _ in targets]
    inputs = {t.index: k for k, (_, t) in enumerate(targets) if t.part is None}
    for bundle, edges, found in zip(bundles(now), pairs, factors, strict=True):
        for (j, i), factor in zip(edges, found, strict=True) if bundle.source is now.graph.input else ():
            if j in inputs:
                slopes[inputs[j]][bundle.target.number, i] = factor
    for part, members in now.by_part([t for _, t in targets]).items():
        at = now.graph.outputs(part, shown)
        if not at:
            continue
        rows = part.slopes([targets[k][1].entry for k in members], list(at.values()))
        for place, row in zip(at, rows.tolist(), strict=True):
            for k, slope in zip(members, row, strict=True):
                slopes[k][place] = slope
    return [[found[end] for end in mine] for found, mine in zip(slopes, ends, strict=True)]
