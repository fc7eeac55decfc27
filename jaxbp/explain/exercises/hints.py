"""From what the gradient checker found to what a learner is told: first a question, then the place.

The checker names the cause of a mistake and where it is. Told at once, that would be the solution; so
each cause has a gentle word that comes first, then the checker's own sentence, then the exercise's hints,
which lead to the solution whatever the mistake is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from jaxbp.check.report import Leaf, Report
from jaxbp.explain.exercises.exercise import Exercise
from jaxbp.explain.function import explain_function

GENTLE = {
    "sign": "Its pattern is right; look at how it is scaled, and at the sign.",
    "scale": "Its pattern is right, its size is not: look at every sum, mean, root and factor.",
    "transpose": "The right numbers stand in the wrong places.",
    "flip": "The right numbers stand in the wrong order along an axis.",
    "missing-sum": "This argument is used at several places of the batch or the axis: what becomes of "
    "their errors?",
    "missing-path": "Some of the paths from this argument to the output are missing: list the places "
    "where it is used, and what each of them reaches.",
    "extra-path": "One of the paths is in the sum more than once.",
    "wrong-point": "One derivative is taken at the wrong value: which value goes into that stage?",
    "wrong-activation": "The derivative of one stage is not that of its function.",
    "missing-rows": "Some of the entries do not contribute: which of them, and why?",
    "swapped": "Compare the order of your results with the order asked for.",
    "zero": "It is 0, although the output depends on it.",
    "stale": "What comes back is proportional to dy: multiply by it, once.",
    "nan": "Not finite at some of the values: which operation is that?",
}
PLURAL = {"is": " are", "has": " have", "holds": " hold", "does": " do"}
# Right in numbers, but not as JAX would like it: said, and let through.
HARMLESS = {
    "jit": "it looks at values while it is traced, so `jax.jit` cannot compile it (np instead of jnp?)",
    "vmap": "`jax.vmap` cannot run it",
    "dtype": "its results are not in the dtype of the arguments",
}


@dataclass(frozen=True)
class Verdict:
    """`wrong` is a sentence, or `None`; `key` tells one mistake from another; `hints` get stronger."""

    wrong: str | None
    key: str = ""
    hints: tuple[str, ...] = ()
    note: str = ""


def from_report(exercise: Exercise, report: Report) -> Verdict:
    """The verdict that a checker's report amounts to, about the first of its findings."""
    serious = [f for f in report.findings if f.cause not in (*HARMLESS, "untested")]
    wrong = [leaf for leaf in report.leaves if leaf.verdict == "wrong"]
    if not serious and not wrong:
        notes = [HARMLESS[f.cause] for f in report.findings if f.cause in HARMLESS]
        notes += [] if report.in_jax else [HARMLESS["jit"]]
        return Verdict(None, note="; ".join(notes))
    finding = serious[0] if serious else report.findings[0]
    about = finding.path.split(", ") if finding.path else [leaf.path for leaf in wrong]
    named = [result_name(exercise, path) for path in about]
    sentence = f"{listed(named)} {'is' if len(named) == 1 else 'are'} not right"
    worst = next((leaf for leaf in wrong if leaf.path in about), None)
    said = () if finding.cause == "unknown" else (in_words(exercise, finding.detail, about),)
    gentle = (GENTLE[finding.cause],) if finding.cause in GENTLE else ()
    key = f"{finding.cause} {finding.path}"
    return Verdict(sentence + _worst(exercise, worst), key, (*gentle, *said, *exercise.hints))


def result_name(exercise: Exercise, path: str) -> str:
    """`dw`; for a training step, whose results are parameters, the gradient that it moves along."""
    return f"the step of {path}" if exercise.is_step else f"d{path}"


def in_words(exercise: Exercise, detail: str, about: list[str]) -> str:
    """The checker's sentence, about the learner's results and the lines of the forward pass."""
    names, said = ", ".join(about), detail
    if said.startswith(names):
        rest = said[len(names) :]
        if len(about) > 1:
            rest = re.sub(r"^ (is|has|holds|does)\b", lambda verb: PLURAL[verb[1]], rest)
        said = listed([result_name(exercise, path) for path in about]) + rest
    said = re.sub(r" \(made by `\w+` at [^`]*`[^`]*`\)|(?<= loop) at forwards\.py:\d+", "", said)
    said = re.sub(r"at forwards\.py:\d+, inside", "inside", re.sub(r"forwards\.py:\d+: ", "", said))
    return said + ("" if said.endswith((".", "?")) else ".")


def listed(names: list[str]) -> str:
    """`dx, dw and db`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _worst(exercise: Exercise, leaf: Leaf | None) -> str:
    """Where a result differs most, with both numbers."""
    if leaf is None or not np.isfinite(leaf.expected):
        return ""
    at = f" at [{', '.join(map(str, leaf.worst))}]" if leaf.worst else ""
    what = "its gradient comes out as" if exercise.is_step else "it is"
    return f": for one choice of values{at} {what} {leaf.got:.6g}, and should be {leaf.expected:.6g}"


# --- one path of numbers ------------------------------------------------------------------------------


def missing_factor(exercise: Exercise, slope: Callable[[float], float]) -> Verdict | None:
    """For a function of one number along one path: which factor is left out, or is there twice.

    Every factor of the chain rule may have the power 0, 1 or 2, and the product either sign; what gives
    the learner's numbers at several points is the mistake.
    """
    points = (0.4, -0.7, 0.9)
    found = [explain_function(exercise.forward, x) for x in points]
    (route,) = found[0].derivatives[0].routes
    names = list(zip(route.nodes, ("x", *route.nodes), strict=False))
    factors = np.array([e.derivatives[0].routes[0].factors for e in found])
    got = np.array([slope(x) for x in points])
    simplest = sorted(product((0, 1, 2), repeat=len(names)), key=lambda p: sum(abs(k - 1) for k in p))
    for sign, powers in product((1, -1), simplest):
        if np.allclose(got, sign * np.prod(factors ** np.array(powers), axis=1), rtol=1e-9):
            return _factors_said(exercise, sign, powers, names)
    return None


def _factors_said(
    exercise: Exercise, sign: int, powers: tuple[int, ...], names: list[tuple[str, str]]
) -> Verdict | None:
    slopes = [f"∂{of}/∂{by}" for of, by in names]
    missing = [s for s, k in zip(slopes, powers, strict=True) if k == 0]
    twice = [s for s, k in zip(slopes, powers, strict=True) if k == 2]
    details: list[str] = []
    details += [f"the factor {' · '.join(missing)} is missing"] if missing else []
    details += [f"the factor {' · '.join(twice)} is there twice"] if twice else []
    details += ["the sign is wrong"] if sign < 0 else []
    if not details:
        return None
    gentle = (
        f"One path leads from x to y, with {len(names)} factors besides dy. Do you have each of them, "
        "once, and with its sign?"
    )
    said = " and ".join(details) + "."
    return Verdict("dx is not right", f"factors {powers} {sign}", (gentle, said, *exercise.hints))
