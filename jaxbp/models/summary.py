"""What a network is made of: `summary(net, x)`, a table of its leaf layers with sizes and costs.

Nothing is computed: shapes come from abstract evaluation, and the costs of the two passes are counted in
their traced programs. A floating-point operation is a multiplication or an addition inside a matrix
product or a convolution; everything else is memory traffic and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from html import escape
from math import prod
from typing import Any

import jax
from jax.extend import core

from jaxbp.layer import Layer, Part, PyTree, Train
from jaxbp.operations import operations
from jaxbp.record import each_passed, record

COLUMNS = ("layer", "path", "output", "parameters", "saved", "forward FLOPs", "backward FLOPs")
STYLE = "border-collapse: collapse; white-space: nowrap"
CELL = "padding: 0.15em 0.7em; border-bottom: 1px solid #8884; text-align: "


@dataclass(frozen=True)
class Row:
    """One leaf layer. `copies` is how many of it a `Stack` holds; the other figures are of all copies.

    `saved` is in bytes; what two layers both keep (an activation's output and the next layer's input)
    is counted at both. `forward` and `backward` are floating-point operations in products; the label
    leaves out how weights start.
    """

    layer: str
    path: str
    output: str
    parameters: int
    saved: int
    forward: int
    backward: int
    copies: int = 1


@dataclass(frozen=True)
class Summary:
    """`rows`, and totals. Shown by `print` as plain text, by `rich` as a table, in a notebook as HTML.

    `saved` is the memory that the forward pass leaves to the backward pass, each buffer counted once and
    parameters and the input not at all.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    saved: int

    @property
    def forward(self) -> int:
        return sum(row.forward for row in self.rows)

    @property
    def backward(self) -> int:
        return sum(row.backward for row in self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """A line of text a row, and one of totals."""
        lines = [
            (
                row.layer + (f" ×{row.copies}" if row.copies > 1 else ""),
                row.path,
                row.output,
                f"{row.parameters:,}",
                _bytes(row.saved),
                _count(row.forward),
                _count(row.backward),
            )
            for row in self.rows
        ]
        still = self.parameters - self.trainable
        share = f" ({still:,} not trained)" if still else ""
        totals = (f"{self.parameters:,}", _bytes(self.saved), _count(self.forward), _count(self.backward))
        return [*lines, (f"total{share}", "", "", *totals)]

    def __str__(self) -> str:
        table = [COLUMNS, *self.cells()]
        widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
        text = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        rule = "─" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(show_footer=True)
        *lines, totals = self.cells()
        for i, (name, total) in enumerate(zip(COLUMNS, totals, strict=True)):
            if name != "path":  # too wide for a terminal; the rows stand in the same order
                left = i < 3
                table.add_column(
                    name, footer=total, justify="left" if left else "right", no_wrap=not left
                )
        for layer, _, *rest in lines:
            table.add_row(layer, *rest)
        return table

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            sides = ["left" if i < 3 else "right" for i in range(len(cells))]
            parts = (
                f'<{tag} style="{CELL}{side}">{escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        *lines, totals = self.cells()
        body = "".join(line(cells, "td") for cells in lines)
        return (
            f'<table style="{STYLE}"><thead>'
            f"{line(COLUMNS, 'th')}</thead><tbody>{body}</tbody>"
            f"<tfoot>{line(totals, 'th')}</tfoot></table>"
        )


def summary(net: Layer, x: PyTree) -> Summary:
    """The table of `net` for inputs like `x` (arrays or `jax.ShapeDtypeStruct`s), in training mode."""
    key = jax.random.key(0)
    params = jax.eval_shape(net.init, key, x)
    mode = Train(key)
    _, gathered = jax.eval_shape(lambda p, v: record(net, p, v, mode), params, x)
    rows = [_row(part) for part in each_passed(net, params, gathered)]
    mask = zip(jax.tree.leaves(net.trainable(params)), jax.tree.leaves(params), strict=True)
    return Summary(
        rows=tuple(rows),
        parameters=_entries(params),
        trainable=sum(prod(leaf.shape) for yes, leaf in mask if yes),
        saved=_kept(net, params, x, mode),
    )


def _row(part: Part) -> Row:
    """Figures of one layer from what passed it; inside a `Stack` arrays have leading axes of copies."""

    def one(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[len(part.copies) :], a.dtype), tree)

    layer, passed = part.layer, part.gathered
    params, x, y, dy = map(one, (part.params, passed.x, passed.y, passed.dy))
    mode, many = Train(jax.random.key(0)), prod(part.copies)
    saved = jax.eval_shape(lambda p, v: layer.forward(p, v, mode)[1], params, x)
    return Row(
        layer=_label(layer),
        path=part.path,
        output=", ".join(f"{list(leaf.shape)}" for leaf in jax.tree.leaves(y)),
        parameters=many * _entries(params),
        saved=many * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved)),
        forward=many * operations(lambda p, v: layer.forward(p, v, mode), params, x),
        backward=many * operations(layer.backward, params, saved, dy),
        copies=many,
    )


def _label(layer: Layer) -> str:
    """The layer as it was made, but for how its weights start: that says nothing of what it is."""
    starts = {
        field.name: field.default
        for field in fields(layer)  # pyright: ignore[reportArgumentType]
        if field.name.endswith("initializer")
    }
    return repr(replace(layer, **starts) if starts else layer)  # pyright: ignore[reportArgumentType]


def _kept(net: Layer, params: PyTree, x: PyTree, mode: Any) -> int:
    """Bytes of distinct values in `saved` that are neither parameters nor the input."""
    program = jax.make_jaxpr(lambda p, v: net.forward(p, v, mode)[1])(params, x).jaxpr
    given = set(program.invars)
    kept = {v for v in program.outvars if not isinstance(v, core.Literal) and v not in given}
    return sum(prod(v.aval.shape) * v.aval.dtype.itemsize for v in kept)


def _entries(tree: PyTree) -> int:
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # pyright: ignore[reportAssignmentType]
    return f"{count:.4g} GiB"


def _count(count: int) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000  # pyright: ignore[reportAssignmentType]
    return f"{count:.4g}T"
