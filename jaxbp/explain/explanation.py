"""An explanation of one weight, in every form in which it can be had."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxbp.explain.example import Example
from jaxbp.explain.facts import Path, Savings, WeightFacts

__all__ = ["Explanation", "Path", "Savings"]


@dataclass(frozen=True)
class Explanation(WeightFacts):
    """Why `∂L/∂weight` is what it is.

    `gradient` is what `net.backward` returns for the weight (what training uses), `total` the sum over
    all `count` paths of the graph, `paths` the largest of them, and `remainder = total - Σ shown`.
    """

    explainer: Example | None = field(default=None, repr=False, compare=False)

    def text(self) -> str:
        """The explanation in plain text."""
        from jaxbp.explain.render import weight_text

        return weight_text(self)

    __str__ = text

    def latex(self) -> str:
        """The sum over the paths as a LaTeX `align*`: symbols, formulas, numbers."""
        from jaxbp.explain.render import weight_latex

        return weight_latex(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for `json.dumps`; counts too large for JSON stay exact."""
        from jaxbp.explain.render import weight_dict

        return weight_dict(self)

    def html(self, file: Any) -> None:
        """Write the interactive page about this network, opened at this weight, to `file`."""
        from jaxbp.explain.page import write_page

        assert self.explainer is not None
        write_page(file, self.explainer, self.weight)

    def png(self, file: Any) -> None:
        """Draw the paths, with their factors on the edges, to the picture `file`."""
        from jaxbp.explain.picture import draw_paths

        draw_paths(self, file)
