"""Is a test of gradients any good: plant faults in a right gradient, see which ones it lets through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxbp.check.edits.edit import Edge, Edited, gate
from jaxbp.check.edits.sites import Sites
from jaxbp.check.operations import Editor, Op, is_float
from jaxbp.check.oracle import Oracle, float64, to_float64
from jaxbp.check.program import Program, read
from jaxbp.check.rule import Rule
from jaxbp.check.sample import Point, make_points
from jaxbp.check.target import Target, make_target
from jaxbp.layer import InputError

Test = Callable[[Callable[..., Any]], Any]
Plant = Callable[..., Any]
PATHS = {"missing-path": 0.0, "extra-path": 2.0}
MOST_EDGES = 48


@dataclass(frozen=True)
class Sensitivity:
    """The planted faults (`"sign in params['w']"`) that a test `caught`, and those that it `missed`.

    `rejects_truth` says that the test fails on the right gradient too, so that nothing it catches counts.
    """

    caught: list[str]
    missed: list[str]
    rejects_truth: bool = False

    @property
    def rate(self) -> float:
        """The share of faults that the test caught; 0 where it also rejects the right gradient."""
        total = len(self.caught) + len(self.missed)
        return 0.0 if self.rejects_truth or not total else len(self.caught) / total

    def __str__(self) -> str:
        if self.rejects_truth:
            return "the test rejects the right gradient too, so it cannot tell right from wrong"
        head = (
            f"the test caught {len(self.caught)} of {len(self.caught) + len(self.missed)} planted faults"
        )
        by_fault: dict[str, list[str]] = {}
        for name in self.missed:
            fault, _, path = name.partition(" in ")
            by_fault.setdefault(fault, []).append(path)
        return "\n".join(
            [
                head,
                *(f"  let through: {fault} in {', '.join(paths)}" for fault, paths in by_fault.items()),
            ]
        )


def _transposed(g: Any) -> Any:
    return jnp.swapaxes(g, -1, -2) if g.ndim > 1 and g.shape[-1] == g.shape[-2] else None


def _another(all_: list[Any], i: int) -> Any:
    return next((h for k, h in enumerate(all_) if k != i and h.shape == all_[i].shape), None)


def _waves(g: Any) -> Any:
    return jnp.cos(jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape)


# fmt: off
FAULTS: dict[str, Callable[[Any, list[Any], int], Any]] = {
    "sign":          lambda g, all_, i: -g,
    "scale 2":       lambda g, all_, i: 2 * g,
    "scale 1.01":    lambda g, all_, i: g * jnp.asarray(1.01, g.dtype),
    "zero":          lambda g, all_, i: jnp.zeros_like(g),
    "transpose":     lambda g, all_, i: _transposed(g),
    "flip":          lambda g, all_, i: jnp.flip(g, 0) if g.ndim and g.shape[0] > 1 else None,
    "missing-rows":  lambda g, all_, i: g.at[-1].set(0) if g.ndim and g.shape[0] > 1 else None,
    "one entry":     lambda g, all_, i: g.at[(0,) * g.ndim].multiply(-1) if g.size > 1 else None,
    "missing-sum":   lambda g, all_, i: g / g.shape[0] if g.ndim and g.shape[0] > 1 else None,
    "swapped":       lambda g, all_, i: _another(all_, i),
    "noise":         lambda g, all_, i: g * (1 + 0.01 * _waves(g)),
    "nan":           lambda g, all_, i: g.at[(0,) * g.ndim].set(jnp.nan),
    "shape":         lambda g, all_, i: g[None],
}
# fmt: on
RULES = ("stale", "wrong-point", "jit", "nondeterministic")


def check_sensitivity(
    target: Any, *args: Any, test: Test, gradient: Any = None, faults: Sequence[str] | None = None
) -> Sensitivity:
    """Plant faults of each class in `target`'s gradient and report which ones `test` would let through.

    Besides faults in the numbers: a gradient that ignores the cotangent (`stale`), one that is taken at
    other arguments (`wrong-point`), one that is wrong wherever it is traced (`jit`) or from its second
    call on (`nondeterministic`), one in which a path through the function is dropped or counted twice.

    `target`, `args` and `gradient` are as in `check_gradients`. `test(fn)` is the user's own test: it
    is called with a function of the differentiable arrays in `args` (flat, in order) whose reverse-mode
    derivative carries a fault, and lets the fault through if it returns without raising and without
    returning `False`. It is first called with the right gradient.
    """
    if not callable(test):
        raise InputError(f"check_sensitivity: test must be a function, got {type(test).__name__}")
    known = (*FAULTS, *RULES, *PATHS)
    unknown = [name for name in faults or () if name not in known]
    if unknown:
        raise InputError(f"check_sensitivity: unknown fault {unknown[0]!r} (faults: {', '.join(known)})")
    made = make_target(target, args, gradient)
    rule = Rule(made)
    outputs = rule.plain()
    point = make_points(made.leaves, outputs, 1, 0, None, False)[0]
    grads = rule.flat(made.leaves, [jnp.asarray(d) for d in point.dy])
    if not passes(test, _planted(made.plain, rule, None, 0)):
        return Sensitivity([], [], rejects_truth=True)
    caught, missed = [], []
    plants = _plants(made, rule, point, faults or known)
    for (name, i), fault in plants.items():
        if not bool(jnp.any(grads[i] != 0)) or (
            name in FAULTS and FAULTS[name](grads[i], grads, i) is None
        ):
            continue
        seen = not passes(test, _planted(made.plain, rule, fault, i))
        (caught if seen else missed).append(f"{name} in {made.paths[i]}")
    return Sensitivity(caught, missed)


def _plants(made: Target, rule: Rule, point: Point, names: Sequence[str]) -> dict[tuple[str, int], Plant]:
    """What makes each leaf's cotangent wrong: `(fault, leaf) -> plant(leaves, dy, grads, i)`."""
    every = range(len(made.leaves))
    found: dict[tuple[str, int], Plant] = {}
    paths = _paths(made, point) if set(names) & set(PATHS) else {}
    for name in names:
        for i in every:
            if name in FAULTS:
                found[name, i] = lambda leaves, dy, grads, i, f=FAULTS[name]: f(grads[i], grads, i)
            elif name in RULES:
                found[name, i] = _of_the_rule(name, rule)
            elif i in paths:
                found[name, i] = _weighted(*paths[i], PATHS[name])
    return found


def _of_the_rule(name: str, rule: Rule) -> Plant:
    """Faults that do not show in one cotangent at one point, looked at once."""
    calls = itertools.count()

    def plant(leaves: list[Any], dy: list[Any], grads: list[Any], i: int) -> Any:
        if name == "stale":
            return rule.flat(leaves, [d * 0 + 1 for d in dy])[i]
        if name == "wrong-point":
            moved = [v * jnp.asarray(1.1, v.dtype) if is_float(v) else v for v in leaves]
            return rule.flat(moved, dy)[i]
        if name == "jit":
            return 2 * grads[i] if isinstance(grads[i], Tracer) else grads[i]
        return grads[i] if next(calls) == 0 else 2 * grads[i]

    return plant


def _paths(made: Target, point: Point) -> dict[int, tuple[Program, Edge]]:
    """For every leaf, an edge that carries a part of its gradient, and not the whole of it."""
    oracle = Oracle(made)
    oracle.program = program = read(made.plain, made.leaves)
    edges = [edge for edge in Sites(program).edges() if not edge.variable][:MOST_EDGES]
    if not edges:
        return {}
    edited = Edited(oracle, edges)
    thetas = np.concatenate([1 - np.eye(len(edges)), np.ones((1, len(edges)))])
    try:
        with float64():
            cut = edited.run(
                thetas, to_float64(made.leaves), to_float64([jnp.asarray(d) for d in point.dy])
            )
    except Exception:  # nothing that autodiff can go backwards through
        return {}
    found = {}
    for i, rows in enumerate(cut):
        size = np.max(np.abs(rows[-1]), initial=0.0)
        for edge, row in zip(edges, rows, strict=False):
            left, gone = np.max(np.abs(row), initial=0.0), np.max(np.abs(row - rows[-1]), initial=0.0)
            if min(left, gone) > 1e-2 * size > 0:
                found[i] = program, edge
    return found


class _Weight(Editor):
    """A weight on one edge."""

    def __init__(self, edge: Edge, weight: float):
        self.edge, self.weight = edge, weight

    def operands(self, op: Op, values: list[Any]) -> list[Any]:
        if op is self.edge.op:
            x = jnp.asarray(values[self.edge.operand])
            values[self.edge.operand] = gate(x, jnp.asarray(self.weight, x.dtype))
        return values


def _weighted(program: Program, edge: Edge, weight: float) -> Plant:
    def plant(leaves: list[Any], dy: list[Any], grads: list[Any], i: int) -> Any:
        def outputs(values: list[Any]) -> list[Any]:
            return [y for y in program.run(values, _Weight(edge, weight), wide=False) if is_float(y)]

        return jax.vjp(outputs, leaves)[1](dy)[0][i]

    return plant


def passes(test: Test, fn: Callable[..., Any]) -> bool:
    """Whether the test is content with this function."""
    try:
        return test(fn) is not False
    except Exception:
        return False


def _planted(plain: Callable[..., Any], rule: Rule, fault: Any, i: int) -> Callable[..., Any]:
    @jax.custom_vjp
    def fn(*leaves: Any) -> Any:
        return plain(*leaves)

    def forward(*leaves: Any) -> Any:
        return plain(*leaves), leaves

    def backward(leaves: Any, dy: Any) -> Any:
        flat = [d for d in jax.tree.leaves(dy) if d.dtype != jax.dtypes.float0]
        grads = rule.flat(list(leaves), flat)
        if fault is not None:
            grads[i] = fault(list(leaves), flat, grads, i)
        return tuple(grads)

    fn.defvjp(forward, backward)
    return fn
