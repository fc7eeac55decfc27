"""The paths of one weight as a picture."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

from jaxbp.explain.facts import WeightFacts
from jaxbp.explain.render import figure, fine, plural
from jaxbp.explain.symbols import latex_name
from jaxbp.layer import InputError

INK, LINE, PALETTE = (
    "#1d2430",
    "#c4cad3",
    ("#1f6fb4", "#c2551a", "#7a3db8", "#2d8a57", "#a8326b", "#6b6f1d"),
)

ALONG = 0.32  # where on its edge a factor stands: not in the middle, where edges cross


def draw_paths(e: WeightFacts, file: Any) -> None:
    """Every shown path as a line through its neurons, its factors on the edges, the sum below.

    Format by the file's ending (png, svg, pdf). Needs `matplotlib`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not File(file).parent.is_dir():
        raise InputError(f"{file}: the folder {File(file).parent} does not exist")
    columns: list[list[str]] = [[e.weight]]
    for path in e.paths:
        for k, node in enumerate(path.nodes, 1):
            while len(columns) <= k:
                columns.append([])
            if node not in columns[k]:
                columns[k].append(node)
    at = {
        (k, node): (1.6 * k, (len(column) - 1) / 2 - i)
        for k, column in enumerate(columns)
        for i, node in enumerate(sorted(column))
    }
    tall = max(map(len, columns))
    rows = len(e.paths)
    chart = Figure(
        figsize=(1.9 * len(columns) + 0.6, 1.0 + 1.15 * tall + 0.3 * rows), layout="constrained"
    )
    FigureCanvasAgg(chart)
    axes = chart.add_subplot()
    seen: dict[Any, int] = {}
    for number, path in enumerate(e.paths):
        colour = PALETTE[number % len(PALETTE)]
        nodes = (e.weight, *path.nodes)
        for k, (node, following) in enumerate(zip(nodes, path.nodes, strict=False)):
            (x0, y0), (x1, y1) = at[k, node], at[k + 1, following]
            shift = 0.07 * seen.get((k, node, following), 0)
            axes.plot([x0, x1], [y0 - shift, y1 - shift], color=colour, lw=2.2, zorder=1)
            if not seen.get((k, node, following), 0):
                axes.annotate(
                    f"× {figure(path.factors[k], 3)}",
                    (x0 + ALONG * (x1 - x0), y0 + ALONG * (y1 - y0)),
                    ha="center", va="bottom", fontsize=10, color=INK, zorder=3,
                    bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85},
                )  # fmt: skip
            seen[k, node, following] = seen.get((k, node, following), 0) + 1
        axes.text(
            0, -tall / 2 - 0.35 - 0.32 * number, f"{' → '.join(nodes)}   =   {fine(path.contribution)}",
            color=colour, fontsize=11, va="top",
        )  # fmt: skip
    for (_, node), (x, y) in at.items():
        axes.scatter([x], [y], s=1000, color="#eef2f7", edgecolor=LINE, linewidth=1.4, zorder=2)
        axes.text(
            x, y, f"${latex_name(node)}$", ha="center", va="center", fontsize=12, color=INK, zorder=4
        )
    rest = e.count - len(e.paths)
    others = f", with {fine(e.remainder)} from {plural(rest, 'other path')}" if rest else ""
    axes.set_title(
        rf"$\partial L/\partial {latex_name(e.weight)}$ = {fine(e.total)}{others}", fontsize=13, color=INK
    )
    axes.set_ylim(-tall / 2 - 0.6 - 0.32 * rows, tall / 2 + 0.15)
    axes.set_xlim(-0.5, 1.6 * (len(columns) - 1) + 0.5)
    axes.axis("off")
    try:
        chart.savefig(file, dpi=150)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
