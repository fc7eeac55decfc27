"""Gradients written by hand, right and wrong: what the checker, and other checkers, are measured on.

One family a file; `exhibits()` gives them all, `correct.cases()` the right ones on which to be silent.
"""

from experiments.gallery import (
    activations,
    attention,
    blocks,
    chosen,
    convolution,
    dense,
    formulas,
    losses,
    norms,
    recurrence,
    science,
    sequences,
    systems,
    tables,
    unrolled,
)
from experiments.gallery.common import Exhibit

FAMILIES = (
    dense, activations, norms, losses, attention, convolution, recurrence, tables, science,
    blocks, sequences, formulas, systems, unrolled, chosen,
)  # fmt: skip


def exhibits() -> list[Exhibit]:
    """All of them."""
    return [exhibit for family in FAMILIES for exhibit in family.exhibits()]
