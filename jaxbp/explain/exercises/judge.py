"""Is the learner's function right? `check_gradients` decides; here it is asked, and read.

The learner's function is run once as it is, so that what it raises points at the learner's own line and
a result of the wrong form gets a word about its form. Then the gradient checker compares it with autodiff
and says what kind of mistake it is; `hints.py` turns that into hints.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.report import Report
from jaxbp.check.verify import check_gradients
from jaxbp.explain.exercises.exercise import Exercise
from jaxbp.explain.exercises.hints import Verdict, from_report, missing_factor

BUDGET = 200  # gradient evaluations that a diagnosis may take: a check should answer in seconds
RATE = 0.3


def judge(exercise: Exercise, written: Any) -> Verdict:
    """What is wrong with the learner's function, and the hints that this calls for."""
    with jax.enable_x64(True):
        arguments = draw(exercise)
        wrong = form(exercise, _once(exercise, written, arguments), arguments)
        if wrong is not None:
            return Verdict(wrong, "form", hints=() if "yet" in wrong else exercise.hints)
        report = check(exercise, written, arguments)
        if not report.ok and len(exercise.shapes) == 1 and not next(iter(exercise.shapes.values())):
            found = missing_factor(exercise, lambda x: float(written(jnp.asarray(x), jnp.ones(()))))
            if found is not None:
                return found
        return from_report(exercise, report)


def draw(exercise: Exercise) -> dict[str, Any]:
    """Arguments of both signs, by name; a target `y` is a distribution."""
    random = np.random.default_rng(0)
    made = {name: random.normal(size=shape) * 0.8 for name, shape in exercise.shapes.items()}
    if "y" in made:
        *rows, classes = exercise.shapes["y"]
        made["y"] = random.dirichlet(np.ones(classes), rows or None)
    return {name: jnp.asarray(value) for name, value in made.items()}


def _once(exercise: Exercise, written: Any, arguments: dict[str, Any]) -> Any:
    """The learner's function, run as it is."""
    if exercise.is_step:
        return written(*arguments.values(), jnp.asarray(RATE))
    like = jax.eval_shape(exercise.forward, *arguments.values())
    dy = np.random.default_rng(1).normal(size=like.shape)
    return written(*arguments.values(), jnp.asarray(dy))


def form(exercise: Exercise, got: Any, arguments: dict[str, Any]) -> str | None:
    """What is wrong with the number, kind and shapes of the results; `None` where nothing is."""
    names = exercise.results
    if got is None or got is ...:
        return f"{exercise.function} returns nothing yet: it should return {', '.join(names)}"
    results = list(got) if isinstance(got, tuple | list) else [got]
    if len(results) != len(names):
        return f"expected {len(names)} results, {', '.join(names)}, got {len(results)}"
    for name, asked, result in zip(names, exercise.asked, results, strict=True):
        if result is None or result is ...:
            return f"{name} is missing yet"
        try:
            value = np.asarray(result, np.float64)
        except (TypeError, ValueError):
            return f"{name} should be an array, got {type(result).__name__}"
        expected = np.shape(arguments[asked])
        if value.shape != expected:
            return (
                f"{name} has shape {list(value.shape)}, expected {list(expected)}, the shape of {asked}"
            )
        if not np.all(np.isfinite(value)):
            return f"{name} is not finite"
    return None


def check(exercise: Exercise, written: Any, arguments: dict[str, Any]) -> Report:
    """`check_gradients` on the learner's function, with the fixed arguments held fixed.

    A training step claims the gradient `(w - w_new)/η`, so it is checked as a gradient too.
    """

    def every(values: Sequence[Any]) -> list[Any]:
        known = {**arguments, **dict(zip(exercise.asked, values, strict=True))}
        return [known[name] for name in exercise.shapes]

    def forward(*values: Any) -> Any:
        return exercise.forward(*every(values))

    def by_hand(*values: Any) -> Any:
        *given, dy = values
        if not exercise.is_step:
            found = written(*every(given), dy)
            return tuple(found) if isinstance(found, list) else found
        rate = jnp.asarray(RATE, dy.dtype)
        moved = written(*every(given), rate)
        return tuple((old - new) / rate * dy for old, new in zip(given, moved, strict=True))

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in exercise.asked]
    forward.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    forward.__name__ = exercise.forward.__name__
    given = [arguments[name] for name in exercise.asked]
    return check_gradients(forward, *given, gradient=by_hand, samples=2, budget=BUDGET)
