"""What a diagnosis works with: some points in float64, and what is true and what is claimed there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxbp.check.oracle import Oracle, float64
from jaxbp.check.target import Target

BUDGET = 8000


@dataclass(eq=False)
class Case:
    """`true[i][q]` and `got[i][q]` are the cotangents of leaf `i` at point `q`.

    `tolerance[i]` is the relative difference below which two of them count as the same; `wrong` are the
    leaves to explain; `used` counts gradient evaluations, of which there may be `budget`.
    """

    target: Target
    oracle: Oracle
    points: list[tuple[list[Any], list[Any]]]
    labels: list[str]
    true: list[list[np.ndarray]]
    got: list[list[np.ndarray]]
    tolerance: list[float]
    wrong: list[int]
    rule: Any = None
    budget: int = BUDGET
    used: int = 0
    cut_short: bool = False
    notes: list[str] = field(default_factory=list)
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        return self.target.paths

    def affords(self, evaluations: int) -> bool:
        """Whether the budget allows so many more; remembers that it did not."""
        self.cut_short = self.cut_short or self.used + evaluations > self.budget
        return self.used + evaluations <= self.budget

    def gradients(
        self, q: int, leaves: list[Any] | None = None, dy: list[Any] | None = None
    ) -> list[Any]:
        """The true cotangents at point `q`, or with other leaves or another `dy` there."""
        self.used += 1
        own = self.points[q]
        with float64():
            made = self.oracle.compiled(
                own[0] if leaves is None else leaves, own[1] if dy is None else dy
            )
        return [np.asarray(g) for g in made]
