"""Points far from the given one, at which the function may no longer be what the gradient is of.

Arguments eight times larger show faults that the given ones hide. They also overflow inside autodiff, and
take an iteration to where it does not converge: then an implicit gradient, right wherever it does, is not
the derivative of the steps taken. Both are told from a fault before anything is called wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxbp.check import noise
from jaxbp.check.differences import doubted
from jaxbp.check.measure import arrays
from jaxbp.check.oracle import float64
from jaxbp.check.sample import FAR, Point

if TYPE_CHECKING:
    from jaxbp.check.verify import Check

BETWEEN = (0.25, 0.4, 0.55, 0.7)  # shares of the far arguments, where a difference is looked for
GRADUAL = (1e4, 1e-3)  # more than so many roundings and less than so much: neither right nor wrong


def not_to_be_judged(check: Check) -> list[int]:
    """The far points at which a difference says nothing about the gradient; each is noted."""
    dropped = []
    near = [q for q, point in enumerate(check.points) if not point.label.startswith(FAR)]
    for q, point in enumerate(check.points):
        if not point.label.startswith(FAR):
            continue
        wrong = [i for i in range(len(check.target.leaves)) if check.verdicts.is_wrong_at(i, q)]
        wrong = [i for i in wrong if not any(check.verdicts.is_wrong_at(i, p) for p in near)]
        if not wrong:
            continue
        names = ", ".join(check.target.paths[i] for i in wrong)
        if doubted(check, q):
            why = "autodiff itself disagrees with differences there, as where it overflows on the way"
        elif share := _gradual(check, q, wrong):
            why = (
                f"the difference grows by degrees (it is there at {share:.0%} of these arguments, and "
                "small), as where a series or an iteration is cut off before it has converged"
            )
        else:
            continue
        check.report.notes.append(f"{names}: not judged {point.label}: {why}")
        dropped.append(q)
    return dropped


def _gradual(check: Check, q: int, wrong: list[int]) -> float:
    """The share of the far arguments at which a difference is small and more than rounding; 0 if none."""
    if check.exact is None:
        return 0.0
    for share in BETWEEN:
        leaves = [(share * np.asarray(v)).astype(v.dtype) for v in check.points[q].leaves]
        point = Point(f"at {share:.0%}", leaves, check.points[q].dy)
        with float64():
            truth = arrays(check.oracle.compiled(*check.wide_of(point)))
        got = check.claimed(point)
        errors = [check.verdicts.error(got[i], truth[i]) for i in wrong]
        low, high = GRADUAL[0] * noise.epsilon(np.float64), GRADUAL[1]
        if any(low < e < high for e in errors):
            return share
    return 0.0
