"""`check_gradients`: is a rule the derivative of its function, and does it keep the contract.

One `Check` is one run: the rule is called as a user would call it, then compared with the oracle at
several points, then held against the contract; what is wrong goes to the diagnosis.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check import contract, kinks, network, noise, zeros
from jaxbp.check.backward import bare
from jaxbp.check.diagnosis import diagnose
from jaxbp.check.diagnosis.case import BUDGET, Case
from jaxbp.check.diagnosis.elsewhere import updated
from jaxbp.check.differences import cross_check, doubted
from jaxbp.check.digits import noise_words
from jaxbp.check.far import not_to_be_judged
from jaxbp.check.measure import array, arrays, error, values_differ
from jaxbp.check.oracle import Oracle, float64, to_float64
from jaxbp.check.program import has_rule
from jaxbp.check.report import Finding, Leaf, Report
from jaxbp.check.rule import Rule, RuleError
from jaxbp.check.sample import Point, make_points, second_cotangent
from jaxbp.check.target import Misfit, Target, make_target
from jaxbp.check.verdict import Verdicts
from jaxbp.layer import InputError, PyTree

NEGLIGIBLE = 1e-6  # of the size as given: so small a gradient says little about a fault
LARGE = 500_000  # entries from which a check makes do with one point


def check_gradients(
    target: Any,
    *args: Any,
    gradient: Any = None,
    torch: Any = None,
    reference: Any = None,
    cotangent: Any = None,
    samples: int = 3,
    seed: int = 0,
    budget: int = BUDGET,
) -> Report:
    """Check a hand-written derivative against float64 autodiff and say what is wrong with it.

    `target` is a layer, a loss or a network with its arguments; a function that is or calls a
    `jax.custom_vjp` (autodiff then takes the function inside, never the rule); any function with
    `gradient=hand`, `hand(*args, cotangent)` giving a cotangent for each argument; or a pair
    `(forward, backward)` with `forward(*args) -> (y, saved)`, `backward(saved, dy) -> cotangents`.
    A rule need not be written in JAX, only the function: `hand`, or the two passes beside a `reference`,
    may work on NumPy's arrays (or hand them on, to a kernel say), and `torch=Function.apply` is the
    backward pass of a `torch.autograd.Function`, or of any function of tensors, as `torch.autograd` runs
    it, its output compared too. Such a rule is called with numbers, some 10 times, and never traced.

    `reference` names another function to be the truth (for a straight-through estimator of `f`, say:
    `lambda x: x + stop_gradient(f(x) - x)`). Arguments are pytrees; only floating leaves have gradients.

    `cotangent` (shaped like the output) is used at the given arguments instead of a random one.
    `samples` points are looked at near the arguments, and some far from them; `budget` bounds the
    gradient evaluations of a diagnosis. Raises `InputError` for what cannot be checked at all.
    """
    for name, number, least in (("samples", samples, 1), ("seed", seed, 0), ("budget", budget, 0)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise InputError(f"{name}: expected a whole number, at least {least}, got {number!r}")
    made = make_target(target, args, gradient, reference, torch)
    return Check(made, cotangent, samples, seed, budget, reference is not None).run()


def assert_gradients(target: Any, *args: Any, **options: Any) -> Report:
    """`check_gradients`, raising `AssertionError` with the report as its message unless it is right."""
    report = check_gradients(target, *args, **options)
    if not report.ok:
        raise AssertionError(str(report))
    return report


class Check:
    """One run of `check_gradients`, step by step."""

    def __init__(
        self, target: Target, given: Any, samples: int, seed: int, budget: int, referenced: bool = False
    ):
        self.target, self.given, self.seed, self.budget = target, given, seed, budget
        self.samples, self.referenced = samples, referenced
        self.report = Report(target.name)
        self.rule = Rule(target)
        self.light = sum(leaf.size for leaf in target.leaves) > LARGE

    def run(self) -> Report:
        start = time.perf_counter()
        try:
            with np.errstate(all="ignore"):
                self._steps()
        finally:
            if self.target.opaque:
                times, self.report.in_jax = self.target.opaque.calls, False
                self.report.notes.append(
                    f"the rule is not written in JAX: it was called with numbers, {times} times, and not "
                    "looked at under jit and vmap"
                )
            self.report.seconds = time.perf_counter() - start
        return self.report

    def _steps(self) -> None:
        outputs = self.rule.plain(compute=not self.light)
        self._note_plain()
        self.points = self._points(outputs)
        first = self.points[0]
        try:
            y, cotangents, misfits = self._first(first)
        except RuleError as refused:
            located = network.locate(self) if self.target.kind == "layer" else []
            self._stop(*(located or [_raised(str(refused))]))
            return
        self.report.evaluations += 1
        misfits += [] if any(m.cause == "structure" for m in misfits) else self.rule.forms(cotangents)
        if any(m.cause == "structure" for m in misfits):
            self._stop(*(Finding(m.path, m.cause, m.detail) for m in misfits))
            return
        self._primal(y)
        if self.report.leaves:
            return
        self.eager = [array(g, leaf) for g, leaf in zip(cotangents, self.target.leaves, strict=True)]
        self._compare(misfits)

    # --- getting going

    def _first(self, point: Point) -> tuple[Any, list[Any], list[Misfit]]:
        """As it is called; compiled where the arguments are large, and un-jitted where that fails."""
        leaves, dy = self.leaves(point), self.dy(point)
        if self.light:
            try:
                made = self.rule.first(leaves, dy, compiled=True)
            except RuleError:
                self.light = False
            else:
                how = "" if self.target.opaque else ", compiled; not un-jitted, not under vmap"
                note = f"large arguments: looked at one point{how}"
                self.report.notes.append(note)
                return made
        return self.rule.first(leaves, dy)

    def leaves(self, point: Point) -> list[Any]:
        """The leaves of a point in their own dtypes."""
        pairs = zip(point.leaves, self.target.leaves, strict=True)
        return [jnp.asarray(v, leaf.dtype) for v, leaf in pairs]

    def dy(self, point: Point) -> list[Any]:
        """Its cotangents."""
        return [jnp.asarray(g) for g in point.dy]

    def _note_plain(self) -> None:
        if self.target.kind != "rule" or self.referenced:
            return
        if not has_rule(self.target.plain, self.target.leaves):
            self.target.kind = "plain"
            self.report.notes.append(
                "no hand-written rule was found in this function: JAX differentiates it, and only that "
                "was compared, with finite differences"
            )

    def _points(self, outputs: list[Any]) -> list[Point]:
        given = None
        if self.given is not None:
            given = jax.tree.leaves(self.given)
            if [np.shape(g) for g in given] != [y.shape for y in outputs]:
                shapes = [list(y.shape) for y in outputs], [list(np.shape(g)) for g in given]
                raise InputError(
                    f"cotangent: expected shapes {shapes[0]}, like the output, got {shapes[1]}"
                )
        samples, far = (1, False) if self.light else (self.samples, self.samples > 1)
        points = make_points(self.target.leaves, outputs, samples, self.seed, given, far)
        if not self.light:
            points.insert(1, second_cotangent(points[0], self.seed))
        return points

    def _stop(self, *findings: Finding) -> None:
        """Nothing can be compared: every leaf is wrong, for the reason given."""
        self.report.findings += findings
        for path, leaf in zip(self.target.paths, self.target.leaves, strict=True):
            verdict = Leaf(path, leaf.shape, str(leaf.dtype), "wrong", float("nan"), float("nan"))
            self.report.leaves.append(verdict)

    def _primal(self, y: PyTree) -> None:
        """The rule's own forward pass returns what the function returns."""
        ours, theirs = jax.tree.flatten(y), jax.tree.flatten(self.rule.output)
        if ours[1] != theirs[1]:
            detail = f"the rule's forward pass returns {ours[1]}, the function {theirs[1]}"
            self.report.findings.append(Finding("", "forward", detail))
            return
        for i, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True)):
            detail = (
                "" if isinstance(b, jax.ShapeDtypeStruct) else values_differ(*map(np.asarray, (a, b)))
            )
            if detail and self._random():
                return
            if detail:
                which = f"output {i}" if len(ours[0]) > 1 else "the output"
                detail = f"the rule's forward pass is not the function: {which} {detail}"
                self.report.findings.append(Finding("", "forward", detail))
                return

    def _random(self) -> bool:
        """Whether the function itself gives another result when it is called again."""
        once, again = (
            jax.tree.leaves(self.rule.output),
            jax.tree.leaves(self.target.plain(*self.target.leaves)),
        )
        if not any(values_differ(*map(np.asarray, pair)) for pair in zip(once, again, strict=True)):
            return False
        detail = (
            "the function itself gives another result when it is called again: there is no one derivative"
        )
        self._stop(Finding("", "nondeterministic", detail))
        return True

    # --- the comparison

    def _compare(self, misfits: list[Misfit]) -> None:
        with float64():
            self.oracle = Oracle(self.target, optimise=self.light)
            wide = [self.wide_of(p) for p in self.points]
            if self.light:
                truth = [arrays(self.oracle.compiled(*wide[0]))]
            else:
                truth = [arrays(self.oracle.settle(*wide[0]))]
                truth += [arrays(self.oracle.compiled(*p)) for p in wide[1:]]
        self.exact = None if self.light else self.rule.widened(self.dy(self.points[0]))
        self.got = [self.claimed(p) for p in self.points]
        self._keep_finite(wide, truth)
        self.verdicts = Verdicts(self)
        self._after_kinks()
        if not self.light:
            dropped = not_to_be_judged(self)
            keep = [q for q in range(len(self.points)) if q not in dropped]
            self.verdicts.keep(keep)
            self._keep(keep)
        odd = {m.path for m in misfits if m.cause == "shape"}
        wrong = [
            i for i, path in enumerate(self.target.paths) if path in odd or self.verdicts.is_wrong(i)
        ]
        at_zeros = [] if wrong or self.light else zeros.wrong_at_zeros(self, lambda q: doubted(self, q))
        self.verdicts.judge(wrong or at_zeros)
        self._explain(wrong or at_zeros, misfits, bool(at_zeros))

    def wide_of(self, point: Point) -> tuple[list[Any], list[Any]]:
        return to_float64(self.leaves(point)), to_float64(self.dy(point))

    def claimed(self, point: Point) -> list[np.ndarray]:
        """The rule's cotangents at a point: in float64 where it can be run so, else as they are."""
        self.report.evaluations += 1
        if self.exact is not None:
            try:
                with float64():
                    return arrays(self.exact(*self.wide_of(point)))
            except Exception:
                self.exact = None
        if point is self.points[0]:
            return self.eager
        try:
            _, cotangents, _ = self.rule.first(self.leaves(point), self.dy(point))
        except RuleError:
            return [np.full(leaf.shape, np.nan) for leaf in self.target.leaves]
        return [array(g, leaf) for g, leaf in zip(cotangents, self.target.leaves, strict=True)]

    def _keep_finite(self, wide: list[Any], truth: list[Any]) -> None:
        """Drop points outside the function's domain (never the given one)."""
        keep = [q for q in range(len(truth)) if q == 0 or all(np.all(np.isfinite(t)) for t in truth[q])]
        if len(keep) > 1 and any(
            1e-3 < error(g, t) < np.inf for g, t in zip(self.got[0], truth[0], strict=True)
        ):
            # wrong as given: that it also overflows elsewhere is not what is wrong with it
            keep = [q for q in keep if q == 0 or all(np.all(np.isfinite(g)) for g in self.got[q])]
        self.wide, self.truth = wide, truth
        self._keep(keep)

    def _keep(self, keep: list[int]) -> None:
        """Go on with some of the points."""
        self.points = [self.points[q] for q in keep]
        labels = [p.label for p in self.points if not p.label.endswith("another cotangent")]
        self.report.tried = [label.removeprefix("with ") for label in labels]
        self.wide, self.truth = [self.wide[q] for q in keep], [self.truth[q] for q in keep]
        self.got = [self.got[q] for q in keep]

    def _after_kinks(self) -> None:
        """Where a difference could come from a tie, look again with the ties broken."""
        if self.light:
            return
        leaves = range(len(self.target.leaves))
        bad = [[not e <= self.verdicts.tolerance(i) for e in self.verdicts.errors(i)] for i in leaves]
        suspects = [q for q in range(len(self.points)) if any(row[q] for row in bad)]
        if not suspects:
            return
        with float64():
            ties = {q: kinks.ties(self.oracle.program, self.wide[q][0]) for q in suspects}
        for q, found in ties.items():
            if found:
                self._move_off(q, found)

    def _move_off(self, q: int, found: list[kinks.Tie]) -> None:
        moved = kinks.nudge(self.points[q], self.seed)
        with float64():
            wide = self.wide_of(moved)
            truth = arrays(self.oracle.compiled(*wide))
        got = self.claimed(moved)
        if not all(np.all(np.isfinite(t)) for t in truth):
            return
        nan = [i for i, g in enumerate(self.got[q]) if not np.all(np.isfinite(g))]
        if nan and all(np.all(np.isfinite(self.truth[q][i])) for i in nan):
            return
        tie = found[0]
        note = (
            f"the function has a kink at some of the arguments tried (ties in `{tie.operation}` "
            f"at {tie.place}); looked beside it instead"
        )
        if note not in self.report.notes:
            self.report.notes.append(note)
        if q == 0:
            self.eager = got
        self.points[q], self.wide[q], self.truth[q], self.got[q] = moved, wide, truth, got

    # --- the contract, and what is wrong

    def _explain(self, wrong: list[int], misfits: list[Misfit], at_zeros: bool) -> None:
        findings = [self._not_linear(f, wrong) for f in contract.findings(self, misfits)]
        findings = [zeros.advised(self, f) for f in findings] if at_zeros else findings
        self.report.findings += findings
        formal = ("shape", "transpose", "missing-sum", "structure", "nan", "stale", "wrong-point")
        settled = {f.path for f in findings if f.cause in formal}
        whole = any(f.cause in ("jit", "nondeterministic", "stale") and not f.path for f in findings)
        rest = [i for i in wrong if self.target.paths[i] not in settled and not whole]
        verdicts = self.verdicts
        rounded = [i for i in rest if all(e <= verdicts.tolerance(i) for e in verdicts.errors(i))]
        typed = {m.path for m in misfits if m.cause == "dtype"}
        self.report.findings += [self._noise(i) for i in rounded if self.target.paths[i] not in typed]
        rest = [i for i in rest if i not in rounded]
        if rest and any(f.cause == "forward" for f in self.report.findings):
            names = ", ".join(self.target.paths[i] for i in rest)
            self.report.notes.append(f"{names}: wrong at the values of that forward pass; mend it first")
        elif at_zeros:
            self.report.findings += [zeros.finding(self, i) for i in rest]
        elif rest:
            self._diagnose(rest)
        if not self.light or wrong:
            cross_check(self)

    def _not_linear(self, finding: Finding, wrong: list[int]) -> Finding:
        """Why a gradient is not linear in the cotangent: a bare term, `f(dy)`, or taken after a step."""
        if finding.cause != "stale" or finding.evidence.get("constant", True) or self.light:
            return finding
        i = self.target.paths.index(finding.path)
        if i not in wrong:
            return finding
        case = self._case([i])
        found = bare.itself(case, i) or bare.bare(case, i, self._at_no_cotangent(i)) or updated(case, i)
        self.report.evaluations += case.used
        return found or finding

    def _at_no_cotangent(self, i: int) -> np.ndarray:
        """What the rule returns for a leaf where the cotangent is 0."""
        first = self.points[0]
        return self.claimed(replace(first, dy=[np.zeros_like(d) for d in first.dy]))[i]

    def _diagnose(self, rest: list[int]) -> None:
        if self.target.kind == "layer" and not self.referenced:
            found = network.locate(self)
            self.report.findings += found
            if found:
                return
        case = self._case(rest)
        try:
            self.report.findings += diagnose.diagnose(case)
        except Exception as error:  # a diagnosis must not hide the verdict
            case.notes.append(f"the diagnosis failed: {type(error).__name__}: {error}"[:300])
            self.report.findings += [diagnose.unknown(case, i) for i in case.wrong]
        self.report.evaluations += case.used
        self.report.notes += case.notes

    def _noise(self, i: int) -> Finding:
        path, floor = self.target.paths[i], self.verdicts.floor[i]
        far, dtype = error(self.eager[i], self.truth[0][i]), str(self.target.leaves[i].dtype)
        others = noise_words(floor, dtype)
        detail = (
            f"{path} is right in float64, but in {dtype} its error is {far:.2g}, "
            f"where autodiff's is {others}: digits cancel or are rounded away on the way"
        )
        return Finding(path, "noise", detail, {"error": far, "floor": floor})

    def _case(self, wrong: list[int]) -> Case:
        count = range(len(self.target.leaves))
        keep = self._telling(wrong)
        return Case(
            self.target,
            self.oracle,
            [self.wide[q] for q in keep],
            [self.points[q].label for q in keep],
            [[self.truth[q][i] for q in keep] for i in count],
            [[self.got[q][i] for q in keep] for i in count],
            [self.verdicts.same(i, keep) for i in count],
            wrong,
            self.rule,
            self.budget,
        )

    def _telling(self, wrong: list[int]) -> list[int]:
        """The points without those at which a gradient all but vanishes, or grows beyond all measure."""
        usual = {
            i: noise.scale_of(self.truth[0][i]) or max(noise.scale_of(t[i]) for t in self.truth)
            for i in wrong
        }
        keep = [
            q
            for q, true in enumerate(self.truth)
            if q == 0
            or all(
                NEGLIGIBLE < noise.scale_of(true[i]) / (n or 1.0) < 1 / NEGLIGIBLE
                for i, n in usual.items()
            )
        ]
        errors = {i: self.verdicts.errors(i) for i in wrong}
        seen = all(any(not errors[i][q] <= self.verdicts.tolerance(i) for q in keep) for i in wrong)
        return keep if seen else list(range(len(self.points)))


def _raised(message: str) -> Finding:
    lowered = message.lower()
    shaped = "custom" in lowered and ("shape" in lowered or "float32[" in lowered)
    evidence = {"message": message, "advice": "Make the rule run; the message is its own."}
    return Finding("", "shape" if shaped else "structure", f"the rule raised {message}", evidence)
