"""What the page shows, as plain values: the neurons to draw, the edges between them, and every moment.

All numbers come from `Explainer`. A large layer is represented by its strongest neurons; what is left out
is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxbp.explain import names
from jaxbp.explain.example import Example
from jaxbp.explain.graph import Block, Bundle
from jaxbp.explain.moment import Frame, bundles, moment
from jaxbp.explain.seen import Seen
from jaxbp.explain.symbols import mathml, mathml_name, text
from jaxbp.layer import InputError

MOST_SHOWN = 12
LINES = 5  # of progress
STRONGEST = 8
FEW = 20_000  # parameters, all of whose gradients are in the page


def page_data(
    explainer: Example,
    weight: str | None,
    frames: Sequence[Frame],
    rate: float,
    seen: Seen,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    with jax.enable_x64(True):
        graph = explainer.graph
        asked = names.find(graph, weight) if weight else None
        shown = [_strongest(explainer, block, asked) for block in graph.blocks]
        columns = [
            _column(explainer, block, rows) for block, rows in zip(graph.blocks, shown, strict=True)
        ]
        known = bundles(explainer)
        pairs = [_pairs(bundle, shown) for bundle in known]
        links = [_link(explainer, b, p, shown) for b, p in zip(known, pairs, strict=True)]
        targets = _targets(explainer, asked, known, pairs, shown)
        moments = []
        for k, frame in enumerate(frames, 1):
            if say is not None and k in {round(n * len(frames) / LINES) for n in range(1, LINES + 1)}:
                say(f"moment {k} of {len(frames)}")
            moments.append(moment(explainer, frame, shown, pairs, targets, seen))
    return {
        "columns": columns,
        "bundles": links,
        "targets": [t for t, _ in targets],
        "example": seen.example(explainer, shown[0]),
        "arrays": _arrays(explainer),
        "frames": moments,
        "rate": rate,
        "selected": asked.name if asked else targets[0][0]["name"],
    }


# --- what is shown ----------------------------------------------------------------------------------


def _strongest(explainer: Example, block: Block, asked: names.Target | None) -> list[int]:
    """The neurons to draw: all of a small block, else those whose value and error weigh most."""
    size = block.value.size
    if size <= MOST_SHOWN:
        return list(range(size))
    strength = np.abs(block.value * explainer.error(block))
    chosen = set(np.argsort(-strength, kind="stable")[:STRONGEST].tolist())
    if asked is not None and asked.part is None and block is explainer.graph.input:
        chosen.add(asked.index)
    if asked is not None and asked.part is not None:
        for step in explainer.why(asked.name, 3, formulas=False).paths:
            chosen |= {i for i in range(size) if block.neuron(i) in step.nodes}
        place = asked.place
        if (
            block is asked.part.source
            and len(place) == 2
            and block.shape[-1:] == (explainer_shape(asked)[0],)
        ):
            chosen.add(place[0])
    return sorted(chosen)


def explainer_shape(target: names.Target) -> tuple[int, ...]:
    """The shape of the array that a weight is an entry of."""
    assert target.part is not None
    return np.shape(jax.tree.leaves(target.part.params)[target.leaf])


def _column(explainer: Example, block: Block, rows: list[int]) -> dict[str, Any]:
    part = explainer.graph.maker(block)
    if block is explainer.graph.input:
        kind = "input"
    elif block is explainer.graph.end:
        kind = "loss"
    else:
        kind = "sum" if part is None else "weights" if part.number is not None else "function"
    made_by = repr(part.layer) if part is not None else ""
    return {
        "name": block.name,
        "kind": kind,
        "layer": block.layer,
        "by": repr(explainer.loss) if kind == "loss" else made_by,
        "total": int(block.value.size),
        "neurons": [{"name": block.neuron(i), "math": mathml_name(block.neuron(i))} for i in rows],
    }


def _pairs(bundle: Bundle, shown: list[list[int]]) -> list[tuple[int, int]]:
    """The edges between neurons that are shown, as `(source, target)`."""
    rows, columns = shown[bundle.source.number], set(shown[bundle.target.number])
    matrix = bundle.jacobian
    return [
        (j, int(i))
        for j in rows
        for i in matrix.indices[matrix.indptr[j] : matrix.indptr[j + 1]]
        if int(i) in columns
    ]


def _link(
    explainer: Example, bundle: Bundle, pairs: list[tuple[int, int]], shown: list[list[int]]
) -> dict[str, Any]:
    at_source = {j: k for k, j in enumerate(shown[bundle.source.number])}
    at_target = {i: k for k, i in enumerate(shown[bundle.target.number])}
    formulas = [explainer.formulas.edge(bundle, j, i) for j, i in pairs]
    return {
        "from": bundle.source.number,
        "to": bundle.target.number,
        "edges": [
            {
                "a": at_source[j],
                "b": at_target[i],
                "text": None if f is None else text(f),
                "math": None if f is None else mathml(f),
                "loose": f is not None and f.op in ("add", "neg"),
                "weight": str(f.args[0]) if f is not None and f.op == "name" else None,
            }
            for (j, i), f in zip(pairs, formulas, strict=True)
        ],
        "total": int(bundle.jacobian.nnz),
    }


def _arrays(explainer: Example) -> list[dict[str, Any]]:
    """Every parameter array, so that any weight can be asked for; with the gradients if they are few."""
    found = list(names.arrays(explainer.graph))
    few = sum(np.size(array) for *_, array in found) <= FEW
    return [
        {
            "key": key if names.has_names(part, key) else None,
            "number": part.number,
            "path": prefix,
            "slices": part.slices,
            "shape": np.shape(array),
            "gradients": _flat(explainer.gradient_array(prefix, part.slices)) if few else None,
        }
        for part, _, key, prefix, array in found
    ]


def _flat(gradient: np.ndarray) -> list[float]:
    return [float(f"{g:.9g}") for g in gradient.reshape(-1).tolist()]


# --- what can be asked for --------------------------------------------------------------------------


def _targets(
    explainer: Example,
    asked: names.Target | None,
    bundles: list[Bundle],
    pairs: list[list[tuple[int, int]]],
    shown: list[list[int]],
) -> list[tuple[dict[str, Any], names.Target]]:
    """The weights on edges that are shown, the biases of their ends, the inputs, and what was asked."""
    graph = explainer.graph
    found: list[names.Target] = []
    for bundle, edges in zip(bundles, pairs, strict=True):
        for j, i in edges:
            formula = explainer.formulas.edge(bundle, j, i)
            if formula is not None and formula.op == "name" and bundle.part is not None:
                found.append(names.find(graph, str(formula.args[0])))
    for part, leaf, key, prefix, array in names.arrays(graph):
        rows = shown[part.target.number]
        if np.ndim(array) == 1 and key == "b" and part.target.shape[-1:] == np.shape(array):
            places = sorted({i % len(array) for i in rows})
            found += [names.make(part, leaf, key, prefix, array, (i,)) for i in places]
    found += [names.find(graph, graph.input.neuron(i)) for i in shown[graph.input.number]]
    found += [] if asked is None else [asked]
    if not found:
        raise InputError("page: no weight with a name to show; name one with weight=")
    known = sorted({target.name: target for target in found}.values(), key=_order)
    explainer.learn(known, shown)
    return [(_record(explainer, target, shown), target) for target in known]


def _order(target: names.Target) -> tuple[Any, ...]:
    """Layer by layer, in a layer by name of the array, in it by neuron, then by where it comes from."""
    number = (target.part.number or 0) if target.part is not None else 0
    return number, target.key, target.place[::-1]


def _record(explainer: Example, target: names.Target, shown: list[list[int]]) -> dict[str, Any]:
    """A weight as the page knows it."""
    e = explainer.why(target.name if target.part is None else target.path, 1)
    start = explainer.start(target)
    ends = []
    for block, line, bundle in start:
        rows = {i: k for k, i in enumerate(shown[block.number])}
        for i, factor in zip(line.indices.tolist(), line.data.tolist(), strict=True):
            if i in rows and len(ends) < 64:
                formula = (
                    explainer.formulas.weight(target, block, i)
                    if bundle is None
                    else explainer.formulas.edge(bundle, target.index, i)
                )
                ends.append(
                    {
                        "to": block.number,
                        "b": rows[i],
                        "i": i,
                        "factor": factor,
                        "text": None if formula is None else text(formula),
                        "math": None if formula is None else mathml(formula),
                        "loose": formula is not None and formula.op in ("add", "neg"),
                    }
                )
    return {
        "name": target.name,
        "path": target.path,
        "math": mathml_name(target.name) if target.name[0].isalpha() else None,
        "kind": "input" if target.part is None else "bias" if target.key == "b" else "weight",
        "count": str(e.count),
        "oneByOne": str(e.savings.one_by_one),
        "onePass": str(e.savings.one_pass),
        "start": ends,
        "touched": int(sum(line.nnz for _, line, _ in start)),
    }
