"""What there is to say about a derivative, as plain values; how it is said is built upon these.

`explanation.py` and `function.py` hand them out with `text()`, `latex()` and the like.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxbp.explain.stages import Stage
from jaxbp.explain.symbols import Expr, substitute


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
class WeightFacts:
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

    @property
    def stepped(self) -> float:
        """The weight after one step of plain gradient descent, `w - η ∂L/∂w` with `η = rate`."""
        return self.value - self.rate * self.gradient


@dataclass(frozen=True)
class Route:
    """One path from an input to the result: the stages it passes, its factors, and their product.

    `formulas[k]` and `factors[k]` are the derivative of `nodes[k]` by the node before it.
    """

    nodes: tuple[str, ...]
    formulas: tuple[Expr, ...]
    factors: tuple[float, ...]
    contribution: float


@dataclass(frozen=True)
class Derivative:
    """`∂y/∂input`: the sum over its `count` paths, of which `routes` are the largest."""

    input: str
    value: float
    routes: tuple[Route, ...]
    count: int
    total: float
    remainder: float
    reference: float


@dataclass(frozen=True)
class FunctionFacts:
    """A function of numbers, its stages in order, and its derivative by each input.

    `stages` hold the inputs first. `value` is the result, and `derivatives[k].total` the derivative by
    the k-th number among the inputs; `derivatives[k].reference` is what `jax.grad` says.
    """

    stages: tuple[Stage, ...]
    output: str
    value: float
    derivatives: tuple[Derivative, ...]
    title: str = ""

    def in_inputs(self, formula: Expr) -> Expr:
        """A formula with every stage replaced by what it stands for, down to the inputs."""
        known: dict[str, Expr] = {}
        for stage in self.stages:
            if stage.formula is not None:
                known[stage.name] = substitute(stage.formula, known)
        return substitute(formula, known)
