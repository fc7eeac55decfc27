"""`check_gradients`: is a rule the derivative of its function, and does it keep the contract."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check import kinks, noise
from jaxbp.check.oracle import Oracle, directional, float64, to_float64
from jaxbp.check.program import has_rule, is_float
from jaxbp.check.report import Finding, Leaf, Report
from jaxbp.check.rule import Rule, RuleError, summary
from jaxbp.check.sample import Point, make_points, second_cotangent
from jaxbp.check.target import Misfit, Target, make_target
from jaxbp.layer import InputError, PyTree

EXACT = 1e-6  # float64 against float64: formulas agree, constants may have been written in float32
LARGE = 500_000  # entries from which a check makes do with one point
BUDGET = 1500


def check_gradients(
    target: Any,
    *args: Any,
    gradient: Any = None,
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
    `reference` names another function to be the truth. Arguments are pytrees; only floating leaves
    have gradients.

    `cotangent` (shaped like the output) is used at the given arguments instead of a random one.
    `samples` points are looked at near the arguments, and some far from them; `budget` bounds the
    gradient evaluations of a diagnosis. Raises `InputError` for what cannot be checked at all.
    """
    if samples < 1:
        raise InputError(f"samples: expected at least 1, got {samples}")
    made = make_target(target, args, gradient, reference)
    return Check(made, cotangent, samples, seed, budget, reference is not None).run()


def assert_gradients(target: Any, *args: Any, **options: Any) -> Report:
    """`check_gradients`, raising `AssertionError` with the report as its message unless it is right."""
    report = check_gradients(target, *args, **options)
    if not report.ok:
        raise AssertionError(str(report))
    return report


@dataclass(eq=False)
class Case:
    """What a diagnosis works with: points in float64, and what is true and claimed for every leaf.

    `true[i][q]` and `got[i][q]` are the cotangents of leaf `i` at point `q`; `tolerance[i]` is the
    relative difference below which two of them count as the same.
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
            self._steps()
        finally:
            self.report.seconds = time.perf_counter() - start
        return self.report

    def _steps(self) -> None:
        outputs = self.rule.plain()
        self._note_plain()
        self.points = self._points(outputs)
        first = self.points[0]
        try:
            y, cotangents, misfits = self.rule.first(self._leaves(first), self._dy(first))
        except RuleError as error:
            self._stop(_raised(str(error)))
            return
        self.report.evaluations += 1
        misfits += [] if any(m.cause == "structure" for m in misfits) else self.rule.forms(cotangents)
        if any(m.cause == "structure" for m in misfits):
            self._stop(*(Finding(m.path, m.cause, m.detail) for m in misfits))
            return
        self._primal(y)
        self.eager = [_numpy(g, leaf) for g, leaf in zip(cotangents, self.target.leaves, strict=True)]
        self._compare(misfits)

    # --- getting going

    def _leaves(self, point: Point) -> list[Any]:
        return [
            jnp.asarray(v, leaf.dtype) for v, leaf in zip(point.leaves, self.target.leaves, strict=True)
        ]

    def _dy(self, point: Point) -> list[Any]:
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
        like = [np.asarray(y) for y in outputs]
        samples, far = (1, False) if self.light else (self.samples, self.samples > 1)
        points = make_points(self.target.leaves, like, samples, self.seed, given, far)
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
            detail = _values_differ(np.asarray(a), np.asarray(b))
            if detail:
                which = f"output {i}" if len(ours[0]) > 1 else "the output"
                detail = f"the rule's forward pass is not the function: {which} {detail}"
                self.report.findings.append(Finding("", "forward", detail))
                return

    # --- the comparison

    def _compare(self, misfits: list[Misfit]) -> None:
        with float64():
            self.oracle = Oracle(self.target)
            wide = [self._wide(p) for p in self.points]
            if self.light:
                self.oracle.method = "reverse"
                truth = [_arrays(self.oracle.compiled(*wide[0]))]
            else:
                truth = [_arrays(self.oracle.settle(*wide[0]))]
                truth += [_arrays(self.oracle.compiled(*p)) for p in wide[1:]]
        self.exact = None if self.light else self.rule.widened(self._dy(self.points[0]))
        self.got = [self._claimed(p) for p in self.points]
        self._keep_finite(wide, truth)
        self.floor = self._floor()
        self._after_kinks()
        wrong = [i for i in range(len(self.target.leaves)) if self._is_wrong(i)]
        odd = {m.path for m in misfits if m.cause == "shape"}
        wrong = sorted({*wrong, *(i for i, p in enumerate(self.target.paths) if p in odd)})
        self._judge(wrong)
        self._explain(wrong, misfits)

    def _wide(self, point: Point) -> tuple[list[Any], list[Any]]:
        return to_float64(self._leaves(point)), to_float64(self._dy(point))

    def _claimed(self, point: Point) -> list[np.ndarray]:
        """The rule's cotangents at a point: in float64 where it can be run so, else as they are."""
        self.report.evaluations += 1
        if self.exact is not None:
            try:
                with float64():
                    return _arrays(self.exact(*self._wide(point)))
            except Exception:
                self.exact = None
        if point is self.points[0]:
            return self.eager
        try:
            _, cotangents, _ = self.rule.first(self._leaves(point), self._dy(point))
        except RuleError:
            return [np.full(leaf.shape, np.nan) for leaf in self.target.leaves]
        return [_numpy(g, leaf) for g, leaf in zip(cotangents, self.target.leaves, strict=True)]

    def _keep_finite(self, wide: list[Any], truth: list[Any]) -> None:
        """Drop points outside the function's domain (never the given one)."""
        keep = [q for q in range(len(truth)) if q == 0 or all(np.all(np.isfinite(t)) for t in truth[q])]
        self.points = [self.points[q] for q in keep]
        self.wide, self.truth = [wide[q] for q in keep], [truth[q] for q in keep]
        self.got = [self.got[q] for q in keep]

    def _floor(self) -> list[float]:
        """How far the working dtype's own autodiff is from float64, leaf by leaf."""
        leaves, first = self.target.leaves, self.points[0]
        plain = [noise.epsilon(leaf.dtype) for leaf in leaves]
        if self.light or self.oracle.method != "reverse":
            return [8 * p for p in plain]
        try:
            grads = jax.jit(noise.working_gradient(self.target.plain))(
                self._leaves(first), self._dy(first)
            )
        except Exception:
            return [8 * p for p in plain]
        self.report.evaluations += 1
        return [
            max(_error(np.asarray(g, np.float64), t), p) if np.all(np.isfinite(np.asarray(g))) else np.inf
            for g, t, p in zip(grads, self.truth[0], plain, strict=True)
        ]

    def _tolerance(self, i: int) -> float:
        if self.exact is not None:
            return EXACT
        leaf = self.target.leaves[i]
        rounding = [noise.epsilon(v.dtype) for v in (leaf, *self.points[0].dy)]
        return max(EXACT, 20 * min(self.floor[i], 1.0), 32 * max(rounding))

    def _errors(self, i: int) -> list[float]:
        return [_error(g[i], t[i]) for g, t in zip(self.got, self.truth, strict=True)]

    def _is_wrong(self, i: int) -> bool:
        if self.target.optional[i] and self.rule.absent[i]:
            return False
        errors = self._errors(i)
        bad = [q for q, e in enumerate(errors) if not e <= self._tolerance(i)]
        if not bad:
            return self._eager_wrong(i)
        if self._beyond_rounding(i, errors[0]):
            return True
        return any(not errors[q] <= 200 * self._spread(q, i) for q in bad)

    def _beyond_rounding(self, i: int, error: float) -> bool:
        """Whether float64 is as wrong as the working dtype at the given point: rounding would shrink."""
        eps = noise.epsilon(self.target.leaves[i].dtype)
        if self.exact is None or not error > self._tolerance(i) or eps < 1e-10:
            return False
        here = _error(self.eager[i], self.truth[0][i])
        return error > 1e-3 * min(here, 1.0) and error > 1e-3 * min(self.floor[i], 1.0)

    def _eager_wrong(self, i: int) -> bool:
        """The formula is right in float64; is the working dtype's result still of any use."""
        error = _error(self.eager[i], self.truth[0][i])
        eps = noise.epsilon(self.target.leaves[i].dtype)
        if not np.isfinite(error):
            return bool(np.isfinite(self.floor[i])) and bool(np.all(np.isfinite(self.truth[0][i])))
        return error > max(100 * self.floor[i], 200 * eps, 1e-2 if eps > 1e-10 else EXACT)

    def _spread(self, q: int, i: int) -> float:
        """The relative spread at a point, measured once for all leaves, and only where it matters."""
        if not hasattr(self, "_spreads"):
            self._spreads = [[0.0] * len(self.target.leaves)] * len(self.points)
            if self.exact is not None and self.rule.program is not None:
                run = self.rule.program.run
                pairs = [
                    noise.spread(lambda v, d: run([*v, *d]), self.wide),
                    noise.spread(self.oracle.gradient, self.wide),
                ]
                self._spreads = [
                    [max(a, b) for a, b in zip(first, second, strict=True)]
                    for first, second in zip(*pairs, strict=True)
                ]
        return self._spreads[q][i] / (noise.scale_of(self.truth[q][i]) or 1.0)

    def _after_kinks(self) -> None:
        """Where a difference could come from a tie, look again with the ties broken."""
        if self.light:
            return
        suspects = [
            q
            for q in range(len(self.points))
            if any(not self._errors(i)[q] <= self._tolerance(i) for i in range(len(self.floor)))
        ]
        if not suspects:
            return
        with float64():
            ties = {q: kinks.ties(self.oracle.program, self.wide[q][0]) for q in suspects}
        for q, found in ties.items():
            if found:
                self._move_off(q, found)

    def _move_off(self, q: int, found: list[kinks.Tie]) -> None:
        point = self.points[q]
        moved = kinks.nudge(point, self.seed)
        with float64():
            wide = self._wide(moved)
            truth = _arrays(self.oracle.compiled(*wide))
        got = self._claimed(moved)
        if not all(np.all(np.isfinite(t)) for t in truth):
            return
        nan = [i for i, g in enumerate(self.got[q]) if not np.all(np.isfinite(g))]
        if nan and all(np.all(np.isfinite(self.truth[q][i])) for i in nan):
            return
        note = f"the function has a kink at these arguments ({found[0]}); looked beside it instead"
        if note not in self.report.notes:
            self.report.notes.append(note)
        if q == 0:
            self.eager = got
        self.points[q], self.wide[q], self.truth[q], self.got[q] = moved, wide, truth, got

    # --- verdicts

    def _judge(self, wrong: list[int]) -> None:
        for i, (path, leaf) in enumerate(zip(self.target.paths, self.target.leaves, strict=True)):
            errors = self._errors(i)
            q = int(np.argmax([np.inf if np.isnan(e) else e for e in errors])) if i in wrong else 0
            got, true = (self.eager[i] if q == 0 else self.got[q][i]), self.truth[q][i]
            if i in wrong and not _error(got, true) > self._tolerance(i):
                got = self.got[q][i]
            error = _error(got, true)
            index = _worst(got, true)
            values = (
                (float(got[index]), float(true[index])) if got.shape == true.shape and got.size else ()
            )
            verdict = self._verdict(i, wrong, error)
            where = self.points[q].label
            self.report.leaves.append(
                Leaf(path, leaf.shape, str(leaf.dtype), verdict, error, self.floor[i], index, *values)
                if not values
                else Leaf(
                    path,
                    leaf.shape,
                    str(leaf.dtype),
                    verdict,
                    error,
                    self.floor[i],
                    index,
                    *values,
                    where,
                )
            )
            if verdict == "wrong" and got.shape == true.shape:
                self.report.pictures[path] = (got, true)
        self._untested()

    def _verdict(self, i: int, wrong: list[int], error: float) -> str:
        if i in wrong:
            return "wrong"
        if self.target.optional[i] and self.rule.absent[i]:
            return "untested"
        if all(noise.scale_of(t[i]) == 0 for t in self.truth):
            return "untested"
        eps = noise.epsilon(self.target.leaves[i].dtype)
        return "noisy" if error > 1e-3 or error > max(1e4 * eps, 30 * self.floor[i]) else "right"

    def _untested(self) -> None:
        idle = [leaf.path for leaf in self.report.leaves if leaf.verdict == "untested"]
        if idle and len(idle) == len(self.report.leaves):
            detail = (
                "the true gradient is 0 everywhere at these arguments, so that a rule returning 0 "
                "passes: this check could not have failed"
            )
            self.report.findings.append(Finding("", "untested", detail))
        elif idle:
            some = ", ".join(idle[:5]) + (" …" if len(idle) > 5 else "")
            self.report.notes.append(f"the true gradient of {some} is 0 here: that part could not fail")

    # --- the contract, and what is wrong

    def _explain(self, wrong: list[int], misfits: list[Misfit]) -> None:
        from jaxbp.check import contract

        findings = contract.findings(self, misfits)
        self.report.findings += findings
        settled = {
            f.path
            for f in findings
            if f.cause in ("shape", "transpose", "missing-sum", "structure", "nan", "stale")
        }
        whole = any(f.cause in ("jit", "nondeterministic", "stale") and not f.path for f in findings)
        rest = [i for i in wrong if self.target.paths[i] not in settled and not whole]
        rounded = [i for i in rest if all(e <= self._tolerance(i) for e in self._errors(i))]
        self.report.findings += map(self._noise, rounded)
        rest = [i for i in rest if i not in rounded]
        if rest:
            self._diagnose(rest)
        if not self.light or wrong:
            self._differences()

    def _diagnose(self, rest: list[int]) -> None:
        from jaxbp.check import diagnose, network

        if self.target.kind == "layer" and not self.referenced:
            found = network.locate(self)
            self.report.findings += found
            if found:
                return
        case = self._case(rest)
        self.report.findings += diagnose.diagnose(case)
        self.report.evaluations += case.used
        self.report.notes += case.notes

    def _noise(self, i: int) -> Finding:
        path, error = self.target.paths[i], _error(self.eager[i], self.truth[0][i])
        detail = (
            f"{path} is right in float64, but in {self.target.leaves[i].dtype} its error is {error:.2g}, "
            f"where autodiff's is {self.floor[i]:.2g}: digits cancel or are rounded away on the way"
        )
        return Finding(path, "noise", detail, {"error": error, "floor": self.floor[i]})

    def _case(self, wrong: list[int]) -> Case:
        count = range(len(self.target.leaves))
        return Case(
            self.target,
            self.oracle,
            self.wide,
            [p.label for p in self.points],
            [[t[i] for t in self.truth] for i in count],
            [[g[i] for g in self.got] for i in count],
            [self._match_tolerance(i) for i in count],
            wrong,
            self.rule,
            self.budget,
        )

    def _match_tolerance(self, i: int) -> float:
        spreads = (
            [self._spread(q, i) for q in range(len(self.points))] if hasattr(self, "_spreads") else [0]
        )
        return max(2 * self._tolerance(i), *(min(100 * s, 1e-2) for s in spreads))

    def _differences(self) -> None:
        """The oracle itself against finite differences along one random direction."""
        if self.oracle.method == "differences":
            self.report.notes.append(
                "autodiff does not reach this function; the truth is from differences"
            )
            return
        rng = np.random.default_rng([self.seed, 2])
        with float64():
            leaves, dy = (list(map(np.asarray, part)) for part in self.wide[0])
            v = [_direction(np.asarray(leaf), rng) for leaf in leaves]
            outputs = jax.jit(self.oracle.outputs)
            slope, doubt = directional(outputs, leaves, dy, v)
            steady = [directional(outputs, leaves, dy, v, step)[0] for step in (4e-4, 1e-4)]
        by_autodiff = sum(float(np.vdot(t, a)) for t, a in zip(self.truth[0], v, strict=True))
        size = sum(float(np.sum(np.abs(t * a))) for t, a in zip(self.truth[0], v, strict=True)) + 1e-300
        differs = min(abs(float(s) - by_autodiff) for s in (slope, *steady))
        if differs > max(1e-4 * size, 10 * float(doubt)):
            self._circular(by_autodiff, float(slope))

    def _circular(self, by_autodiff: float, by_differences: float) -> None:
        names = {op.primitive.name for op in kinks.operations(self.oracle.program)}
        reason = (
            "it stops a gradient on purpose"
            if "stop_gradient" in names
            else "it jumps or has a kink here"
            if names & kinks.KINKED
            else "a derivative rule inside it is wrong"
        )
        self.report.notes.append(
            f"autodiff of the plain function says {by_autodiff:.6g} along a random direction, finite "
            f"differences say {by_differences:.6g}: {reason}"
        )
        if reason.startswith("a derivative rule"):
            detail = (
                "the oracle is not to be trusted: autodiff of the plain function disagrees with finite "
                f"differences of it ({by_autodiff:.6g} and {by_differences:.6g} along one direction)"
            )
            self.report.findings.append(Finding("", "forward", detail))


def _raised(message: str) -> Finding:
    lowered = message.lower()
    if "custom" in lowered and ("shape" in lowered or "float32[" in lowered):
        cause = "shape"
    else:
        cause = "structure"
    return Finding("", cause, f"the rule raised {message}", {"message": message})


def _numpy(g: Any, leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape) if g is None else np.asarray(g, np.float64)


def _arrays(values: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(v, np.float64) for v in values]


def _direction(leaf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = np.maximum(np.abs(leaf), 0.1 * (np.mean(np.abs(leaf)) if leaf.size else 0) + 1e-3)
    return np.asarray(scale * rng.standard_normal(leaf.shape))


def _error(got: np.ndarray, true: np.ndarray) -> float:
    """Largest difference over largest true entry; infinite for another shape or a NaN on one side."""
    if got.shape != true.shape:
        return np.inf
    if not got.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(got - true)))
    if np.isfinite(largest):
        return largest / (noise.scale_of(true) or 1.0) if largest else 0.0
    same = (got == true) | (np.isnan(got) & np.isnan(true))
    if np.all(same):
        return 0.0
    if not np.all(np.isfinite(got[~same])) or not np.all(np.isfinite(true[~same])):
        return np.inf
    return float(
        np.max(np.abs(np.where(same, 0, got - true))) / (noise.scale_of(true[np.isfinite(true)]) or 1.0)
    )


def _worst(got: np.ndarray, true: np.ndarray) -> tuple[int, ...]:
    if got.shape != true.shape or not got.size:
        return ()
    difference = np.abs(got - true)
    difference = np.where(np.isnan(difference), np.inf, difference)
    return tuple(int(n) for n in np.unravel_index(int(np.argmax(difference)), got.shape))


def _values_differ(a: np.ndarray, b: np.ndarray) -> str:
    """In words, where two outputs are not the same up to rounding; empty where they are."""
    if a.shape != b.shape:
        return f"has shape {list(a.shape)}, expected {list(b.shape)}"
    if a.dtype != b.dtype:
        return f"has dtype {a.dtype}, expected {b.dtype}"
    if not is_float(b) or not b.size:
        return "" if np.array_equal(a, b) else "has other values"
    first, second = a.astype(np.float64), b.astype(np.float64)
    if _error(first, second) <= max(1e3 * noise.epsilon(b.dtype), 1e-9) ** (
        0.75 if b.dtype.itemsize < 4 else 1
    ):
        return ""
    index = _worst(first, second)
    return f"is {first[index]:.6g} at {list(index)}, expected {second[index]:.6g}"


__all__ = ["Case", "Check", "assert_gradients", "check_gradients", "summary"]
