"""Right, noisy, wrong or untested: leaf by leaf, against a noise floor that is measured.

Where the rule runs in float64, its formula has to agree with the oracle's to six digits; a difference
no larger than what rounding does there is forgiven. In the working dtype its error is held against
that of autodiff in the same dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.check import noise
from jaxbp.check.measure import error, worst
from jaxbp.check.oracle import quick_jit
from jaxbp.check.report import Finding, Leaf

if TYPE_CHECKING:
    from jaxbp.check.verify import Check

LOST = 300  # times as noisy as autodiff in the same dtype: digits are lost that need not be
EXACT = 1e-6  # float64 against float64: formulas agree, constants may have been written in float32


class Verdicts:
    """What counts as wrong, for the leaves of one check."""

    def __init__(self, check: Check):
        self.check = check
        self._measured: dict[tuple[int, int], tuple[float, Any]] = {}
        self.floor = self._floor()
        self._spreads: list[list[float]] | None = None

    def _floor(self) -> list[float]:
        """How far the working dtype's own autodiff is from float64, leaf by leaf."""
        check = self.check
        plain = [noise.epsilon(leaf.dtype) for leaf in check.target.leaves]
        if check.light or check.oracle.method != "reverse":
            return [8 * p for p in plain]
        try:
            fn = quick_jit(noise.working_gradient(check.target.plain))
            grads = fn(check.leaves(check.points[0]), check.dy(check.points[0]))
        except Exception:
            return [8 * p for p in plain]
        check.report.evaluations += 1
        return [
            max(error(np.asarray(g, np.float64), t), p) if np.all(np.isfinite(np.asarray(g))) else np.inf
            for g, t, p in zip(grads, check.truth[0], plain, strict=True)
        ]

    def error(self, got: np.ndarray, true: np.ndarray) -> float:
        """`measure.error`, once for every pair of arrays: they may have millions of entries."""
        key = id(got), id(true)
        if key not in self._measured:
            self._measured[key] = error(got, true), (got, true)  # which keeps their ids from others
        return self._measured[key][0]

    def tolerance(self, i: int) -> float:
        """The relative error from which leaf `i` is suspect."""
        if self.check.exact is not None:
            return EXACT
        leaf = self.check.target.leaves[i]
        rounding = [noise.epsilon(v.dtype) for v in (leaf, *self.check.points[0].dy)]
        return max(EXACT, 20 * min(self.floor[i], 1.0), 32 * max(rounding))

    def errors(self, i: int) -> list[float]:
        """The error of leaf `i` at every point."""
        return [self.error(g[i], t[i]) for g, t in zip(self.check.got, self.check.truth, strict=True)]

    def is_wrong(self, i: int) -> bool:
        if self.check.target.optional[i] and self.check.rule.absent[i]:
            return False
        errors = self.errors(i)
        bad = [q for q, e in enumerate(errors) if not e <= self._allowed(i, q)]
        if not bad:
            return self._eager_wrong(i)
        if self._beyond_rounding(i, errors[0]):
            return True
        return any(self.is_wrong_at(i, q) for q in bad)

    def is_wrong_at(self, i: int, q: int) -> bool:
        """Whether leaf `i` differs at a point by more than its tolerance and what rounding explains."""
        far = self.error(self.check.got[q][i], self.check.truth[q][i])
        return not far <= self._allowed(i, q) and not far <= 200 * self.spread(q, i)

    def keep(self, points: list[int]) -> None:
        """Go on with some of the points."""
        if self._spreads is not None:
            self._spreads = [self._spreads[q] for q in points]

    def forget_spreads(self) -> None:
        """Points have come or gone: what was measured at them is measured again where it matters."""
        self._spreads = None

    def _allowed(self, i: int, q: int) -> float:
        """The tolerance at a point; away from the given ones a series may end where the dtype does."""
        near = self.check.points[q].leaves[i] is self.check.points[0].leaves[i] or q == 0
        eps = noise.epsilon(self.check.target.leaves[i].dtype)
        return self.tolerance(i) if near else max(self.tolerance(i), min(32 * eps, 1e-5))

    def _beyond_rounding(self, i: int, far: float) -> bool:
        """Whether float64 is as wrong as the working dtype at the given point: rounding would shrink."""
        check = self.check
        eps = noise.epsilon(check.target.leaves[i].dtype)
        if check.exact is None or not far > self.tolerance(i) or eps < 1e-10:
            return False
        here = self.error(check.eager[i], check.truth[0][i])
        return far > 1e-3 * min(here, 1.0) and far > 1e-3 * min(self.floor[i], 1.0)

    def _eager_wrong(self, i: int) -> bool:
        """The formula is right in float64; is the working dtype's result still of any use."""
        check = self.check
        here = self.error(check.eager[i], check.truth[0][i])
        eps = noise.epsilon(check.target.leaves[i].dtype)
        if not np.isfinite(here):
            return bool(np.isfinite(self.floor[i])) and bool(np.all(np.isfinite(check.truth[0][i])))
        return here > max(LOST * self.floor[i], 2000 * eps, 0 if eps > 1e-10 else EXACT)

    def spread(self, q: int, i: int) -> float:
        """The relative spread at a point, measured once for all leaves, and only where it matters."""
        check = self.check
        if self._spreads is None:
            self._spreads = [[0.0] * len(check.target.leaves)] * len(check.points)
            if check.exact is not None and (check.rule.program is not None or check.target.opaque):
                pairs = [noise.spread(check.oracle.gradient, check.wide)]
                if check.rule.program is not None:  # one that is only called may be slow
                    run = check.rule.program.run
                    pairs.append(noise.spread(lambda v, d: run([*v, *d]), check.wide))
                self._spreads = [
                    [max(both) for both in zip(*leaves, strict=True)]
                    for leaves in zip(*pairs, strict=True)
                ]
        return self._spreads[q][i] / (noise.scale_of(check.truth[q][i]) or 1.0)

    def same(self, i: int, points: list[int]) -> float:
        """The relative difference below which two cotangents of leaf `i` count as the same there."""
        measured = self._spreads is not None
        spreads = [self.spread(q, i) if measured else 0.0 for q in points]
        return max(2 * self.tolerance(i), *(min(100 * s, 1e-2) for s in spreads))

    # --- the leaves of the report

    def judge(self, wrong: list[int]) -> None:
        """Enter every leaf in the report, and say what could not have failed."""
        for i in range(len(self.check.target.leaves)):
            self.check.report.leaves.append(self._leaf(i, wrong))
        self._untested()

    def _leaf(self, i: int, wrong: list[int]) -> Leaf:
        check, errors = self.check, self.errors(i)
        q = 0
        if i in wrong and errors[0] <= self.tolerance(i) and not max(errors) <= self.tolerance(i):
            q = int(np.argmax([np.inf if np.isnan(e) else e for e in errors]))
        got, true = (check.eager[i] if q == 0 else check.got[q][i]), check.truth[q][i]
        if q and not self.error(got, true) > self.tolerance(i):
            got = check.got[q][i]
        path, leaf, far = check.target.paths[i], check.target.leaves[i], self.error(got, true)
        verdict = self._verdict(i, wrong, far)
        if verdict == "wrong" and got.shape == true.shape:
            check.report.pictures[path] = (got, true)
        found = Leaf(path, leaf.shape, str(leaf.dtype), verdict, far, self.floor[i])
        if got.shape != true.shape or not got.size:
            return found
        index = worst(got, true)
        values = float(got[index]), float(true[index]), check.points[q].label
        return Leaf(path, leaf.shape, str(leaf.dtype), verdict, far, self.floor[i], index, *values)

    def _verdict(self, i: int, wrong: list[int], far: float) -> str:
        if i in wrong:
            return "wrong"
        if self.check.target.optional[i] and self.check.rule.absent[i]:
            return "untested"
        if not any(np.any(np.isfinite(t[i]) & (t[i] != 0)) for t in self.check.truth):
            return "untested"
        eps = noise.epsilon(self.check.target.leaves[i].dtype)
        return "noisy" if far > 1e-3 or far > max(1e4 * eps, 30 * self.floor[i]) else "right"

    def _untested(self) -> None:
        report = self.check.report
        idle = [leaf.path for leaf in report.leaves if leaf.verdict == "untested"]
        if idle and len(idle) == len(report.leaves):
            finite = all(np.all(np.isfinite(t)) for t in self.check.truth[0])
            detail = (
                "the true gradient is 0 everywhere at these arguments, so that a rule returning 0 passes"
                if finite
                else "the true gradient is not finite at these arguments (is there NaN in them?): "
                "nothing could be compared"
            ) + ": this check could not have failed"
            report.findings.append(Finding("", "untested", detail))
        elif idle:
            some = ", ".join(idle[:5]) + (" …" if len(idle) > 5 else "")
            report.notes.append(
                f"the true gradient of {some} is 0 or not finite here: that could not fail"
            )
