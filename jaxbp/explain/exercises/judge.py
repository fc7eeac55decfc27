"""Is the learner's function right? One place, so that what compares can be exchanged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.autodiff import cotangents
from jaxbp.explain.exercises.ladder import Exercise

TOLERANCE = 1e-6
TRIALS = 3


def judge(exercise: Exercise, written: Any) -> str | None:
    """What is wrong with the learner's function, in a sentence, or `None` where nothing is."""
    with jax.enable_x64(True):
        for trial in range(TRIALS):
            arguments, extra, expected = _case(exercise, trial)
            wrong = compare(exercise, written(*arguments, extra), expected)
            if wrong is not None:
                return wrong
    return None


def _case(exercise: Exercise, trial: int) -> tuple[list[Any], Any, list[np.ndarray]]:
    random = np.random.default_rng(trial)
    arguments = [jnp.asarray(random.normal(size=shape) * 0.8) for shape in exercise.shapes.values()]
    if "y" in exercise.shapes:
        at = list(exercise.shapes).index("y")
        arguments[at] = jnp.asarray(
            random.dirichlet(np.ones(exercise.shapes["y"][-1]), exercise.shapes["y"][:-1])
        )
    like = jax.eval_shape(exercise.forward, *arguments)
    dy = jnp.asarray(random.normal(size=like.shape))
    if exercise.function == "step":
        slopes = cotangents(exercise.forward, arguments, jnp.ones(()))
        rate = jnp.asarray(0.3 + 0.2 * trial)
        pairs = zip(exercise.shapes, arguments, slopes, strict=True)
        return arguments, rate, [np.asarray(a - rate * s) for n, a, s in pairs if n not in exercise.fixed]
    slopes = dict(zip(exercise.shapes, cotangents(exercise.forward, arguments, dy), strict=True))
    return arguments, dy, [np.asarray(slopes[name]) for name in exercise.asked]


def compare(exercise: Exercise, got: Any, expected: list[np.ndarray]) -> str | None:
    """The first argument whose error is wrong, and how."""
    names = [name if exercise.function == "step" else f"d{name}" for name in exercise.asked]
    if got is None or got is ...:
        return f"{exercise.function} returns nothing yet: it should return {', '.join(names)}"
    results = list(got) if isinstance(got, tuple | list) else [got]
    if len(results) != len(names):
        return f"expected {len(names)} results, {', '.join(names)}, got {len(results)}"
    for name, result, right in zip(names, results, expected, strict=True):
        wrong = _one(name, result, right)
        if wrong is not None:
            return wrong
    return None


def _one(name: str, result: Any, right: np.ndarray) -> str | None:
    try:
        value = np.asarray(result, np.float64)
    except (TypeError, ValueError):
        return f"{name} should be an array, got {type(result).__name__}"
    if value.shape != right.shape:
        return f"{name} has shape {list(value.shape)}, expected {list(right.shape)}"
    if not np.all(np.isfinite(value)):
        return f"{name} is not finite"
    scale = max(float(np.max(np.abs(right))), 1e-12)
    if float(np.max(np.abs(value - right))) <= TOLERANCE * scale:
        return None
    if not value.any():
        return f"{name} is zero everywhere"
    factor = float(np.vdot(value, right) / np.vdot(right, right))
    close = float(np.max(np.abs(value - factor * right))) <= TOLERANCE * scale * abs(factor)
    if right.size > 1 and close and factor:
        sign = " (the sign is wrong)" if abs(factor + 1) < 1e-6 else ""
        return f"{name} is {factor:.6g} times what it should be{sign}"
    if value.ndim == 2 and value.shape[0] == value.shape[1] and np.allclose(value.T, right, rtol=1e-6):
        return f"{name} is transposed"
    worst = np.unravel_index(int(np.argmax(np.abs(value - right))), right.shape)
    at = f"[{', '.join(map(str, worst))}]" if right.ndim else ""
    return f"{name}{at} is {value[worst]:.6g}, expected {right[worst]:.6g}"
