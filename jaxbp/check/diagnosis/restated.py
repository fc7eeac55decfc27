"""Functions that go many steps to something with a short formula, explained by that formula.

Fast kernels compute a softmax block by block, with a running maximum and a running sum; their backward
pass is written from `p (dp - Σ dp p)`. A slip in it is no slip in any one of the steps, so where a
function is found to be equal to one of the formulas below, at all points in float64, the formula is
looked at in the place of the steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.operations import Constant, is_float
from jaxbp.check.oracle import Oracle, float64
from jaxbp.check.program import all_ops
from jaxbp.check.target import Target

if TYPE_CHECKING:
    from jaxbp.check.diagnosis.case import Case

SAME = 1e-9
Formula = tuple[str, Callable[..., Any]]


def restated(case: Case) -> tuple[str, Case] | None:
    """`(the formula in words, the case with it in the place of the function)`, where there is one."""
    if case.oracle.method != "reverse" or not _goes_in_steps(case):
        return None
    outputs = _Outputs(case)
    with float64():
        if not outputs.one:
            return None
        for words, formula in _formulas(case, outputs.at(0)):
            if all(outputs.equal(q, formula) for q in range(len(case.points))):
                target = _target(case.target, formula)
                return words, replace(case, target=target, oracle=Oracle(target), notes=[], cache={})
    return None


def _target(target: Target, formula: Callable[..., Any]) -> Target:
    """The same arguments with the formula in the place of the function."""

    def apply(*args: Any) -> Any:
        flat = jax.tree.leaves(args)
        return formula(*(flat[n] for n in target.where))

    made = copy.copy(target)
    made.apply, made.saved = apply, None
    return made


class _Outputs:
    """What the function returns at the points, each computed once and only if it is asked for."""

    def __init__(self, case: Case):
        self.case = case
        self.known: dict[int, np.ndarray] = {}
        self.one = len(case.points[0][1]) == 1

    def at(self, q: int) -> np.ndarray:
        if q not in self.known:
            outputs = self.case.oracle.program.run(self.case.points[q][0])
            self.known[q] = np.asarray(next(y for y in outputs if is_float(y)))
        return self.known[q]

    def equal(self, q: int, formula: Callable[..., Any]) -> bool:
        ours, theirs = np.asarray(formula(*self.case.points[q][0])), self.at(q)
        if ours.shape != theirs.shape:
            return False
        size = float(np.max(np.abs(theirs), initial=0.0)) or 1.0
        return float(np.max(np.abs(ours - theirs), initial=0.0)) <= SAME * size


def _goes_in_steps(case: Case) -> bool:
    """Whether it has more exponentials than a formula has, or a loop."""
    ops = list(all_ops(case.oracle.program.scope))
    exps = [op for op in ops if op.primitive.name in ("exp", "exp2")]
    return len(exps) > 1 or any(op.kind == "scan" for op in ops)


# --- the formulas -------------------------------------------------------------------------------------


def _formulas(case: Case, y: Any) -> Iterator[Formula]:
    shapes = [np.shape(leaf) for leaf in case.points[0][0]]
    scales = _scales(case, shapes)
    if len(shapes) == 1:
        for axis in range(len(shapes[0])):
            for c in scales:
                yield f"softmax({_times(c)}x) along axis {axis}", _along(_softmax, axis, c)
                yield f"log softmax({_times(c)}x) along axis {axis}", _along(_log_softmax, axis, c)
                yield f"log Σ exp({_times(c)}x) along axis {axis}", _along(_log_sum_exp, axis, c)
    if len(shapes) == 3:
        for order in itertools.permutations(range(3)):
            q, k, v = (shapes[n] for n in order)
            if not (len(q) == len(k) == len(v) >= 2) or q[-1] != k[-1] or k[-2] != v[-2]:
                continue
            if np.shape(y) != (*q[:-1], v[-1]) or not q[:-2] == k[:-2] == v[:-2]:
                continue
            names = [case.paths[n] for n in order]
            for c, causal in itertools.product(scales, (False, True)):
                masked = ", later keys masked" if causal else ""
                words = f"softmax({_times(c)}{names[0]} {names[1]}ᵀ{masked}) {names[2]}"
                yield words, _attention(order, c, causal)


def _times(c: float) -> str:
    return "" if c == 1 else f"{c:.4g} "


def _scales(case: Case, shapes: list[tuple[int, ...]]) -> list[float]:
    """1, what is usual, and the numbers that the function itself holds."""
    found = [1.0, *(n**-0.5 for s in shapes if s for n in s[-1:])]
    for op in all_ops(case.oracle.program.scope):
        for v in op.inputs if op.primitive.name in ("mul", "div") else ():
            if isinstance(v, Constant) and np.size(v.value) == 1:
                c = float(np.asarray(v.value, np.float64).reshape(()))
                found += [c, 1 / c] if c else []
    return [c for c in dict.fromkeys(found) if np.isfinite(c)][:12]


def _along(formula: Callable[..., Any], axis: int, c: float) -> Callable[..., Any]:
    return lambda x: formula(c * x if c != 1 else x, axis)


def _softmax(u: Any, axis: int) -> Any:
    e = jnp.exp(u - jax.lax.stop_gradient(jnp.max(u, axis, keepdims=True)))
    return e / jnp.sum(e, axis, keepdims=True)


def _log_sum_exp(u: Any, axis: int) -> Any:
    top = jax.lax.stop_gradient(jnp.max(u, axis, keepdims=True))
    return jnp.log(jnp.sum(jnp.exp(u - top), axis)) + jnp.squeeze(top, axis)


def _log_softmax(u: Any, axis: int) -> Any:
    return u - jnp.expand_dims(_log_sum_exp(u, axis), axis)


def _attention(order: tuple[int, ...], c: float, causal: bool) -> Callable[..., Any]:
    def formula(*leaves: Any) -> Any:
        q, k, v = (leaves[n] for n in order)
        s = q @ jnp.swapaxes(k, -1, -2)
        if c != 1:
            s = c * s
        if causal:
            s = jnp.where(np.broadcast_to(np.tril(np.ones(s.shape[-2:], bool)), s.shape), s, -1e30)
        p = _softmax(s, s.ndim - 1)
        return p @ v

    return formula
