"""What there is to say about one derivative: its paths, their sum, and what going backwards saves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxbp.explain.symbols import Expr

if TYPE_CHECKING:
    from jaxbp.explain.weight import Explainer


@dataclass(frozen=True)
class Path:
    """One path from the weight to the loss.

    `nodes` are the neurons it passes (`("a21", "ŷ1", "L")`), `factors[k]` is the derivative of
    `nodes[k]` by the node before it (by the weight, for the first), `formulas` the same as formulas
    where one is known, and `contribution` their product.
    """

    nodes: tuple[str, ...]
    factors: tuple[float, ...]
    contribution: float
    formulas: tuple[Expr | None, ...] = ()


@dataclass(frozen=True)
class Savings:
    """What going backwards saves: multiplications for every path alone, and in one backward pass."""

    paths: int
    one_by_one: int
    one_pass: int


@dataclass(frozen=True)
class Explanation:
    """Why `∂L/∂weight` is what it is.

    `gradient` is what `net.backward` returns for the weight (what training uses), `total` the sum over
    all `count` paths of the graph, `paths` the largest of them, and `remainder = total - Σ shown`.
    """

    weight: str
    path: str
    value: float
    gradient: float
    total: float
    loss: float
    paths: tuple[Path, ...]
    count: int
    remainder: float
    savings: Savings
    error: tuple[str, float] | None
    meets: tuple[str, float] | None
    reference: float | None = None
    rate: float = 1.0
    explainer: Explainer | None = field(default=None, repr=False, compare=False)

    @property
    def stepped(self) -> float:
        """The weight after one step of plain gradient descent, `w - η ∂L/∂w` with `η = rate`."""
        return self.value - self.rate * self.gradient

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
