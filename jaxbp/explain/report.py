"""What `jaxbp explain` prints about a whole network: the two passes, then the weights asked for."""

from __future__ import annotations

import jax
import numpy as np

from jaxbp.explain import names
from jaxbp.explain.render import big, figure
from jaxbp.explain.weight import Explainer

FEW, MANY = 12, 400


def decimals(values: np.ndarray, places: int = 6) -> str:
    """Numbers in a row, with up to `places` decimals."""
    return ", ".join(f"{float(v):.{places}f}".rstrip("0").rstrip(".") or "0" for v in values)


def network_report(explainer: Explainer, weights: list[str], k: int) -> str:
    """Forward values, errors, the explanations of `weights`, all gradients, and what going back saves."""
    parts = [f"{explainer.net}\nwith {explainer.loss}, on one example", forward_table(explainer)]
    parts += [explainer.weight(w, k, reference=True).text() for w in weights]
    parts += [section for section in (gradient_table(explainer), savings(explainer)) if section]
    return "\n\n".join(parts)


def forward_table(explainer: Explainer) -> str:
    """Every block's values, and the error that comes back to it."""
    graph = explainer.graph
    rows = []
    for block in graph.blocks[:-1]:
        size = block.value.size
        if size > FEW:
            rows.append((block.name, f"{size} neurons", ""))
        else:
            rows.append((block.name, decimals(block.value), decimals(explainer.error(block))))
    wide = max(max(len(value) for _, value, _ in rows), len("forward"))
    lines = [f"{'':6} {'forward':<{wide}}  backward: ∂L/∂ each (δ at a)"]
    lines += [f"{name:<6} {value:<{wide}}  {error}".rstrip() for name, value, error in rows]
    return "\n".join([*lines, f"{'L':<6} {figure(graph.value, 12)}"])


def gradient_table(explainer: Explainer) -> str:
    """The gradient of every parameter, arrays as the notes write them: rows to, columns from."""
    with jax.enable_x64(True):
        arrays = list(names.arrays(explainer.graph))
        if sum(int(np.prod(np.shape(a))) for *_, a in arrays) > MANY:
            return ""
        lines = ["Every gradient (rows: to, columns: from)"]
        for part, _, key, prefix, array in arrays:
            found = explainer.gradient_array(prefix, part.slices)
            label = f"∂L/∂{key.upper() if np.ndim(array) == 2 else key}{part.number}"
            rows = np.atleast_2d(found.T if found.ndim == 2 else found.reshape(1, -1))
            for i, row in enumerate(rows):
                head = label if not i else ""
                lines.append(f"  {head:<8} {'  '.join(f'{float(v) + 0.0:>14.11f}' for v in row)}")
    return "\n".join(lines)


def savings(explainer: Explainer) -> str:
    """What going backwards saves, over all weights of a small network."""
    with jax.enable_x64(True):
        if sum(int(np.size(array)) for *_, array in names.arrays(explainer.graph)) > MANY:
            return ""
        targets = list(names.everything(explainer.graph))
        found = [explainer.weight(t.path, 1, formulas=False).savings for t in targets]
        edges = explainer.walk.edges_from([explainer.graph.input])
    paths, one_by_one = sum(s.paths for s in found), sum(s.one_by_one for s in found)
    return (
        f"All {len(targets)} weights together have {big(paths)} paths: {big(one_by_one)} multiplications "
        f"one by one, at most {big(edges + len(targets))} in one backward pass."
    )
