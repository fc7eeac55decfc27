"""What every rule must keep besides being right: forms, linearity, and one result however it is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check import noise, nonfinite_ops
from jaxbp.check.measure import NOTHING
from jaxbp.check.oracle import float64
from jaxbp.check.program import read
from jaxbp.check.report import Finding
from jaxbp.check.rule import RuleError, summary
from jaxbp.check.target import Misfit

LARGE = 1000.0

if TYPE_CHECKING:
    from jaxbp.check.verify import Check


def findings(check: Check, misfits: list[Misfit]) -> list[Finding]:
    """Breaches of the contract, the most telling first."""
    found = [_form(check, m) for m in misfits]
    shaped = not any(m.cause == "shape" for m in misfits)
    steps: list[Callable[[Check], list[Finding]]] = [_finite]
    if shaped:
        steps += [] if check.light else [_twice, _linear]
        if not check.light and not check.target.opaque:
            steps[-1:] = [_jit, _vmap, _linear]
    for step in steps:
        more = step(check)
        found += more
        if any(f.cause in ("nondeterministic", "jit") for f in more):
            break
    return found


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> tuple[int, float]:
    """The leaf in which two results differ most, relative to the leaf's largest entry."""
    worst = (0, 0.0)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            return i, np.inf
        with np.errstate(invalid="ignore"):
            largest = float(np.max(np.abs(x - y), initial=0.0))
        if np.isfinite(largest):
            worst = max(worst, (i, largest / (noise.scale_of(y) or 1.0)), key=lambda pair: pair[1])
            continue
        both = np.isnan(x) & np.isnan(y)
        gap = np.where(both | (x == y), 0.0, np.abs(x - y))
        gap = np.where(np.isnan(gap), np.inf, gap)
        error = float(np.max(gap, initial=0.0)) / (noise.scale_of(y[np.isfinite(y)]) or 1.0)
        worst = max(worst, (i, error), key=lambda pair: pair[1])
    return worst


def _limit(check: Check, i: int) -> float:
    eps = noise.epsilon(check.target.leaves[i].dtype)
    floor = check.verdicts.floor[i] if np.isfinite(check.verdicts.floor[i]) else 1.0
    return min(max(100 * floor, 1000 * eps), 0.5)


def _run(check: Check, fn: Callable[..., Any], point: int = 0) -> list[np.ndarray]:
    check.report.evaluations += 1
    leaves, dy = check.leaves(check.points[point]), check.dy(check.points[point])
    return [np.asarray(g, np.float64) for g in fn(leaves, dy)]


def _eager(check: Check, point: int = 0) -> list[np.ndarray]:
    return _run(check, check.rule.flat, point)


# --- forms --------------------------------------------------------------------------------------------


def _form(check: Check, misfit: Misfit) -> Finding:
    if misfit.cause != "shape":
        return Finding(misfit.path, misfit.cause, misfit.detail)
    i = check.target.paths.index(misfit.path)
    got, true = check.eager[i], check.truth[0][i]
    limit = max(_limit(check, i), 1e-6)
    for cause, words, made in _reshaped(got, true):
        if noise.scale_of(made - true) <= limit * noise.scale_of(true):
            return Finding(misfit.path, cause, f"{misfit.detail}: {words}", {"shape": list(got.shape)})
    return Finding(misfit.path, "shape", misfit.detail, {"shape": list(got.shape)})


def _reshaped(got: np.ndarray, true: np.ndarray) -> Any:
    """`(cause, words, array)` for every way to bring `got` into the shape of `true`."""
    for axes in itertools.permutations(range(got.ndim)) if got.ndim <= 5 else ():
        moved = np.transpose(got, axes)
        if moved.shape == true.shape and axes != tuple(range(got.ndim)):
            yield "transpose", f"its axes are in the order {list(axes)}", moved
    for count in range(1, got.ndim + 1):
        for axes in itertools.combinations(range(got.ndim), count):
            total = np.sum(got, axis=axes)
            if total.size == true.size and total.squeeze().shape == true.squeeze().shape:
                sizes = [got.shape[a] for a in axes]
                along = f"axis {list(axes)} of size {sizes}"
                words = f"it was not summed over {along}, along which the argument is broadcast"
                cause = "missing-sum" if max(sizes) > 1 else "shape"
                yield cause, words, total.reshape(true.shape)
    if got.size == true.size:
        yield "shape", "the values are right, the shape is not", got.reshape(true.shape)


# --- finite -------------------------------------------------------------------------------------------


def _finite(check: Check) -> list[Finding]:
    """Values that are not finite, where autodiff's are; and where even the truth is not."""
    found = []
    for i, path in enumerate(check.target.paths):
        bad_truth = not np.all(np.isfinite(check.truth[0][i]))
        claims = [(check.eager[i], "as given")]
        claims += [(g[i], p.label) for g, p in zip(check.got, check.points, strict=True)]
        for values, where in claims:
            count = int(np.sum(~np.isfinite(values)))
            if not count or (bad_truth and where == "as given"):
                continue
            index = [int(n) for n in np.argwhere(~np.isfinite(values))[0]]
            origin = nonfinite_ops.first(check)
            detail = (
                f"{count} of {values.size} entries of the cotangent are not finite (the first at "
                f"{index}, {where}), while the true ones are{origin and '; ' + origin}"
            )
            found.append(Finding(path, "nan", detail, {"count": count, "index": index}))
            break
        if bad_truth:
            check.report.notes.append(
                f"autodiff's own float64 gradient of {path} is not finite at the given arguments"
            )
    return found


# --- one result however it is run ---------------------------------------------------------------------


def _twice(check: Check) -> list[Finding]:
    again = _eager(check)
    i, error = difference(again, check.eager)
    if not error > _limit(check, i) * 1e-2:
        return []
    detail = (
        f"called twice with the same arguments, the rule gives two results (they differ by {error:.2g})"
    )
    return [Finding("", "nondeterministic", detail, {"difference": error})]


def _jit(check: Check) -> list[Finding]:
    try:
        compiled = _run(check, check.rule.jitted)
    except Exception as error:
        return _refused(check, "jit", error, jax.jit(check.target.plain), check.leaves(check.points[0]))
    i, error = difference(compiled, check.eager)
    where = "under jit"
    if error > _limit(check, i):
        if _only_rounding(check, compiled):
            return []
    else:
        with_integers = check.rule.with_integers()
        if with_integers is None:
            return []
        try:
            compiled = _run(check, with_integers)
        except Exception:
            return []  # they may have to be known: a length, an axis
        where = "under jit with the integer arrays as arguments"
        i, error = difference(compiled, check.eager)
        if not error > _limit(check, i):
            return []
    truth = check.truth[0]
    right = (
        "the compiled one" if difference(compiled, truth)[1] < difference(check.eager, truth)[1] else ""
    )
    right = right or "the one without jit"
    path = check.target.paths[i]
    detail = (
        f"the rule gives another result {where} ({path} differs by {error:.2g}); nearer the "
        f"truth is {right}"
    )
    return [Finding("", "jit", detail, {"path": path, "difference": error})]


def _only_rounding(check: Check, compiled: list[np.ndarray]) -> bool:
    """Whether the traced rule, run operation by operation, gives what the rule gives without `jit`.

    Then it is the same program, and the two results differ by rounding (which is judged elsewhere).
    """
    values = [*check.leaves(check.points[0]), *check.dy(check.points[0])]
    count = len(check.target.leaves)
    try:
        program = read(lambda *v: check.rule.flat(v[:count], v[count:]), values)
        again = [np.asarray(g, np.float64) for g in program.run(values, wide=False)]
    except Exception:
        return False
    i, error = difference(again, check.eager)
    return error <= max(_limit(check, i) * 1e-1, 1e-3 * difference(compiled, check.eager)[1])


def _vmap(check: Check) -> list[Finding]:
    pair = _pair_of_points(check)
    if pair is None:
        return []
    stacked = [
        [jnp.stack(parts) for parts in zip(*part, strict=True)] for part in zip(*pair, strict=True)
    ]
    check.report.evaluations += 2
    try:
        batched = [np.asarray(g, np.float64) for g in jax.jit(jax.vmap(check.rule.flat))(*stacked)]
    except Exception as error:
        return _refused(check, "vmap", error, jax.vmap(check.target.plain), stacked[0])
    for k, (leaves, dy) in enumerate(pair):
        single = [np.asarray(g, np.float64) for g in check.rule.jitted(leaves, dy)]
        i, error = difference([np.asarray(g[k]) for g in batched], single)
        if error > _limit(check, i) and not (check.exact is not None and _noisy(check, i, error)):
            path = check.target.paths[i]
            detail = (
                f"under vmap the rule gives another result than example by example ({path} differs by "
                f"{error:.2g})"
            )
            return [Finding("", "vmap", detail, {"path": path, "difference": error})]
    return []


def _noisy(check: Check, i: int, far: float) -> bool:
    """Whether two results differ by no more than the rule's own noise in this dtype."""
    right = all(e <= check.verdicts.tolerance(i) for e in check.verdicts.errors(i))
    noise_here = difference([check.eager[i]], [check.truth[0][i]])[1]
    return right and far <= 10 * noise_here


def _pair_of_points(check: Check) -> Any:
    points = [check.points[0], check.points[min(2, len(check.points) - 1)]]
    return [(check.leaves(p), check.dy(p)) for p in points]


def _refused(check: Check, way: str, error: Exception, plain: Any, values: Any) -> list[Finding]:
    """The rule cannot be run this way; a fault only where the function itself can."""
    message = summary(error)
    try:
        plain(*values)
    except Exception:
        check.report.notes.append(f"neither the function nor the rule runs under {way}: {message}")
        return []
    detail = f"the function runs under {way}, the rule does not: {message}"
    return [Finding("", way, detail, {"message": message})]


# --- linear in the cotangent --------------------------------------------------------------------------


def _linear(check: Check) -> list[Finding]:
    """`rule(k a - b/2) = k rule(a) - rule(b)/2`, in float64 where the rule can be run so.

    There `k` is large, so that a clipped cotangent is seen too.
    """
    if len(check.points) < 2:
        return []
    (leaves, a), (_, b) = check.wide[0], check.wide[1]
    k = LARGE if check.exact is not None else 2.0
    mixed = [k * np.asarray(x) - 0.5 * np.asarray(y) for x, y in zip(a, b, strict=True)]
    check.report.evaluations += 1
    first, second = check.got[0], check.got[1]
    try:
        if check.exact is not None:
            with float64():
                third = [np.asarray(g, np.float64) for g in check.exact(leaves, mixed)]
        else:
            own = [jnp.asarray(m, d.dtype) for m, d in zip(mixed, check.points[0].dy, strict=True)]
            third = [
                np.asarray(g, np.float64) for g in check.rule.flat(check.leaves(check.points[0]), own)
            ]
    except (RuleError, Exception):
        return []
    return _nonlinear(check, k, first, second, third)


def _nonlinear(check: Check, k: float, a: list, b: list, mixed: list) -> list[Finding]:
    found = []
    for i, path in enumerate(check.target.paths):
        if not all(np.all(np.isfinite(g)) for g in (a[i], b[i], mixed[i])):
            continue
        scale = max(map(noise.scale_of, (k * a[i], b[i], mixed[i]))) or 1.0
        if max(noise.scale_of(a[i]), noise.scale_of(b[i])) <= NOTHING * noise.scale_of(check.truth[0][i]):
            continue  # rounding about 0: that is missing altogether, and not stale
        limit = 1e-6 if check.exact is not None else 3 * _limit(check, i)
        gap = noise.scale_of(k * a[i] - 0.5 * b[i] - mixed[i]) / scale
        if not gap > limit:
            continue
        if check.exact is not None and gap <= 200 * check.verdicts.spread(0, i):
            continue
        scale = max(map(noise.scale_of, (a[i], b[i]))) or 1.0
        constant = noise.scale_of(a[i] - b[i]) <= limit * scale
        detail = (
            f"{path} does not change with the cotangent: the error from behind is not multiplied in"
            if constant
            else f"{path} is not linear in the cotangent (twice the cotangent is not twice the result)"
        )
        found.append(Finding(path, "stale", detail, {"difference": gap, "constant": constant}))
    return found
