"""Coupled stretches: a softmax, a norm, a log-sum-exp, as the two-part derivative that people write.

Between two values `u -> y` every entry may reach its own output, and all outputs along some axes through
a sum. Whatever the operations in between, the backward pass is then

    du = d ∘ g + Σ_t  outer_t ∘ S(inner_t ∘ g)        S: sum along the axes, spread back over them

with arrays `d`, `outer`, `inner` that follow from the recorded values (`p g - p S(p g)` for the softmax).
This is the form in which a derivation on paper ends, and in which its slips are made; `formulas.py` makes
them. Here the stretches are found and `d`, `outer`, `inner` are computed, by the chain rule, in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.edits.edit import loops
from jaxbp.check.edits.sites import Sites, is_elementwise
from jaxbp.check.evaluate import run
from jaxbp.check.operations import Constant, Editor, Op, Scope, is_float, widen
from jaxbp.check.oracle import float64

Values = dict[int, Any]
SUMS = ("reduce_sum", "reduce_max", "reduce_min")
MOVES = ("broadcast_in_dim", "reshape", "squeeze", "expand_dims")
STEPS = 40  # operations in one stretch
MOST_TERMS = 2
LARGEST = 20_000  # entries of `u`
EXACT = 1e-9


@dataclass(eq=False)
class Term:
    """`outer ∘ S(inner ∘ g)`, both in the shape of `u` with 1 where they do not vary; `op` is the sum."""

    inner: np.ndarray
    outer: np.ndarray
    op: Op


Formula = tuple[np.ndarray, list[Term]]  # d, and the terms


@dataclass(eq=False)
class Region:
    """From `start` through `ops` to the first result of `end`, with sums along `axes` alone."""

    start: int
    end: Op
    ops: list[Op]
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    depth: int
    scope: Scope
    cache: dict[int, Any] = field(default_factory=dict)

    @property
    def reduced(self) -> bool:
        """Whether the result has no entries along the axes that are summed."""
        return tuple(self.end.out_avals[0].shape) != self.shape

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of `u` with 1 along the summed axes."""
        return tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))

    def beside(self, env: Values, again: Any) -> Any:
        """The result as it depends on everything but `start`."""
        inner = {**env, self.start: jax.lax.stop_gradient(env[self.start])}
        for op in self.ops:
            operands = [widen(v.value) if isinstance(v, Constant) else inner[v] for v in op.inputs]
            inner[op.outputs[0]] = again(op, operands)
        return inner[self.end.outputs[0]]

    def formula(self, env: Values) -> Formula | None:
        """`(d, terms)` at a point; `None` where the chain rule does not stay in this form."""
        key = id(env)
        if key not in self.cache:
            try:
                with float64(), np.errstate(all="ignore"):
                    self.cache[key] = (_Chain(self, env).run(), env)
            except (ValueError, TypeError, KeyError):
                self.cache[key] = (None, env)
        return self.cache[key][0]


def find(sites: Sites, known: Values) -> list[Region]:
    """Every coupled stretch whose values are recorded."""
    around = loops(sites.program.scope)
    found: list[Region] = []
    for scope in sites.scopes:
        if scope.ops:
            depth = len(around[id(scope.ops[0])])
            found += [r for r in _in_scope(sites, scope, depth) if r.end.outputs[0] in known]
    return found


# --- finding them -------------------------------------------------------------------------------------


def _in_scope(sites: Sites, scope: Scope, depth: int) -> list[Region]:
    members = {o for op in scope.ops if _allowed(op) and not _refills(op) for o in op.outputs}
    starts = [v for v in scope.inputs if v in sites.live]
    starts += [o for op in scope.ops for o in op.outputs if o in sites.live and o not in members]
    starts += [op.inputs[0] for op in scope.ops if _has_terms(sites, op) and op.inputs[0] not in starts]
    found: list[Region] = []
    seen = set(starts)
    while starts:
        start = starts.pop(0)
        shape = sites.shape.get(start, ())
        if not shape or not 1 < int(np.prod(shape)) <= LARGEST or not sites.floating(start):
            continue
        regions = _from(sites, scope, start, tuple(shape), depth)
        found += regions
        further = [r.end.outputs[0] for r in regions if not r.reduced and r.end.outputs[0] not in seen]
        seen.update(further)
        starts += further
    return found


def _has_terms(sites: Sites, op: Op) -> bool:
    """Whether it is the maximum in a log-sum-exp or a softmax of something that is put together."""
    if op.primitive.name != "reduce_max" or op.inputs[0] not in sites.live:
        return False
    maker = sites.producer.get(op.inputs[0])
    while maker is not None and is_elementwise(maker):
        live = [v for k, v in enumerate(maker.inputs) if sites.is_live(maker, k)]
        if len(live) != 1:
            return True
        maker = sites.producer.get(live[0])
    return maker is not None and _allowed(maker)


def _refills(op: Op) -> bool:
    """Whether a reshape makes other axes of the entries: channels split into groups."""
    before, after = ([n for n in a.shape if n > 1] for a in (op.in_avals[0], op.out_avals[0]))
    return op.primitive.name == "reshape" and before != after


def _allowed(op: Op) -> bool:
    name = op.primitive.name
    return len(op.outputs) == 1 and (is_elementwise(op) or name in SUMS or name in MOVES)


def _from(sites: Sites, scope: Scope, start: int, shape: tuple[int, ...], depth: int) -> list[Region]:
    """The coupled stretches from `start` to where a sum meets the entries, and to where they are used."""
    inside: dict[int, Op | None] = {start: None}
    coupled: set[int] = set()
    summed: set[int] = set()  # of these, those with one value for all entries along the axes
    meets: set[int] = set()  # where such a value meets the entries
    axes: tuple[int, ...] | None = None
    for op in scope.ops:
        live = [v for k, v in enumerate(op.inputs) if sites.is_live(op, k)]
        if not any(v in inside for v in live) or not _allowed(op) or len(inside) > STEPS:
            continue
        if not is_float(op.out_avals[0]):
            continue
        if op.primitive.name in SUMS:
            own = tuple(int(a) for a in op.params["axes"])
            if tuple(op.in_avals[0].shape) != shape or axes not in (None, own):
                continue
            axes = own
            coupled.add(op.outputs[0])
            summed.add(op.outputs[0])
        elif all(v in summed for v in live if v in inside):
            summed.add(op.outputs[0])
        elif any(v in summed for v in live):
            meets.add(op.outputs[0])
        coupled.update(op.outputs if any(v in coupled for v in live) else ())
        inside[op.outputs[0]] = op
    if axes is None:
        return []
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    found = []
    for v, op in inside.items():
        users = [o for o in scope.ops if v in o.inputs]
        leaves = v in scope.outputs or any(o.outputs[0] not in inside for o in users if o.outputs)
        size = int(np.prod(sites.shape[v])) if op is not None else 0
        if op is None or op.primitive.name == "stop_gradient":
            continue
        if v not in coupled or not (leaves or v in meets):
            continue
        if tuple(sites.shape[v]) == shape or size == int(np.prod(kept)):
            needed = _needed(v, inside)
            found.append(Region(start, op, needed, axes, shape, depth, scope))
    return found


def _needed(end: int, inside: dict[int, Op | None]) -> list[Op]:
    wanted, order = {end}, []
    for v, op in reversed(inside.items()):
        if v in wanted and op is not None:
            order.append(op)
            wanted.update(u for u in op.inputs if isinstance(u, int))
    return order[::-1]


# --- the chain rule -----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Slope:
    """`dv = direct ∘ du + Σ after ∘ S(before ∘ du)`, `after` in the full shape or with 1 for the axes."""

    direct: np.ndarray | None
    terms: list[tuple[np.ndarray, np.ndarray, Op]]


class _Chain:
    """The derivative along a stretch, operation by operation."""

    def __init__(self, region: Region, env: Values):
        self.region, self.env = region, env
        self.lead = np.shape(env[region.start])[: region.depth]
        self.full = (*self.lead, *region.shape)
        self.kept = (*self.lead, *region.kept)
        self.axes = tuple(region.depth + a for a in region.axes)
        self.slopes: dict[int, _Slope] = {region.start: _Slope(np.ones(self.full), [])}

    def run(self) -> Formula | None:
        for op in self.region.ops:
            self.slopes[op.outputs[0]] = self._step(op)
        slope = self.slopes[self.region.end.outputs[0]]
        direct = np.zeros(self.full) if slope.direct is None else slope.direct
        terms = self._merged(slope.terms, float(np.max(np.abs(direct), initial=0.0)))
        if not terms or len(terms) > MOST_TERMS:
            return None
        return direct, [Term(after, before, op) for after, before, op in terms]

    def _value(self, v: Any, like: tuple[int, ...]) -> np.ndarray:
        """An operand as it stands beside entries of the shape `like`."""
        value = np.asarray(v.value if isinstance(v, Constant) else self.env[v], np.float64)
        if value.size == int(np.prod(like)):
            return value.reshape(like)
        if value.size == 1:
            return np.broadcast_to(value.reshape(()), like)
        if value.size == int(np.prod(self.kept)):
            return np.broadcast_to(value.reshape(self.kept), like)
        if value.shape == like[len(self.lead) :]:
            return np.broadcast_to(value, like)
        if value.shape == self.lead:
            return np.broadcast_to(value.reshape(*self.lead, *(1,) * len(self.region.shape)), like)
        raise ValueError("an operand that does not line up")

    def _step(self, op: Op) -> _Slope:
        name = op.primitive.name
        if name in SUMS:
            return self._sum(op, self.slopes[op.inputs[0]])
        if name in MOVES:
            slope = self.slopes[op.inputs[0]]
            shape = self._shape_of(op.outputs[0])
            if slope.direct is not None and shape != self.full:
                raise ValueError("full entries are moved")
            if shape == self.full and slope.direct is None:
                spread = np.broadcast_to(self._value(op.inputs[0], self.kept), self.full)
                if not np.array_equal(spread, self._value(op.outputs[0], self.full)):
                    raise ValueError("spread along other axes")
            return slope
        return self._elementwise(op)

    def _shape_of(self, v: int) -> tuple[int, ...]:
        size = int(np.prod(np.shape(self.env[v])))
        if np.shape(self.env[v]) == self.full:
            return self.full
        if size == int(np.prod(self.kept)):
            return self.kept
        raise ValueError("another shape")

    def _sum(self, op: Op, slope: _Slope) -> _Slope:
        weight = np.ones(self.full)
        if op.primitive.name != "reduce_sum":
            x = self._value(op.inputs[0], self.full)
            best = (np.max if op.primitive.name == "reduce_max" else np.min)(
                x, axis=self.axes, keepdims=True
            )
            weight = (x == best) / np.sum(x == best, axis=self.axes, keepdims=True)
        terms = [
            (np.sum(weight * after, axis=self.axes, keepdims=True), before, first)
            for after, before, first in slope.terms
        ]
        if slope.direct is not None:
            terms.append((np.ones(self.kept), weight * slope.direct, op))
        return _Slope(None, terms)

    def _elementwise(self, op: Op) -> _Slope:
        if op.primitive.name == "stop_gradient":
            return _Slope(None, [])
        shape = self._shape_of(op.outputs[0])
        operands = [self._operand(v, aval, shape) for v, aval in zip(op.inputs, op.in_avals, strict=True)]
        made = _Slope(None, [])
        for k, v in enumerate(op.inputs):
            inner = self.slopes.get(v) if isinstance(v, int) else None
            if inner is None or not is_float(op.in_avals[k]):
                continue
            rate = _rate(op, k, operands)
            if inner.direct is not None:
                if shape != self.full:
                    raise ValueError("full entries in a reduced value")
                made.direct = rate * inner.direct + (0 if made.direct is None else made.direct)
            made.terms += [(rate * after, before, first) for after, before, first in inner.terms]
        return made

    def _operand(self, v: Any, aval: Any, shape: tuple[int, ...]) -> Any:
        if is_float(aval):
            return self._value(v, shape)
        value = np.asarray(v.value if isinstance(v, Constant) else self.env[v])
        return np.broadcast_to(value.reshape(shape) if value.size > 1 else value.reshape(()), shape)

    def _merged(self, terms: list[Any], scale: float) -> list[Any]:
        """One term for all with the same `before` along the axes; those that cancel are left out."""
        groups: list[list[Any]] = []
        for after, before, op in terms:
            for group in groups:
                ratio = ratio_along(before, group[1], self.axes)
                if ratio is not None:
                    group[0] = group[0] + ratio * after
                    break
            else:
                groups.append([after, before, op])
        sizes = [_reach(a, b) for a, b, _ in groups]
        least = EXACT * max([scale, *(_reach(a, b) for a, b, _ in terms)], default=0.0)
        return [g for g, size in zip(groups, sizes, strict=True) if size > least]


def _reach(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a), initial=0) * np.max(np.abs(b), initial=0))


def ratio_along(a: np.ndarray, b: np.ndarray, axes: tuple[int, ...]) -> np.ndarray | None:
    """`a / b`, where it is the same number all along the axes; 1 there instead of the axes."""
    a, b = np.broadcast_arrays(a, b)
    norm = np.sum(b * b, axis=axes, keepdims=True)
    with np.errstate(all="ignore"):
        ratio = np.sum(a * b, axis=axes, keepdims=True) / norm
    if not np.all(np.isfinite(ratio)):
        return None
    scale = np.max(np.abs(a), axis=axes, keepdims=True)
    if np.any(np.abs(a - ratio * b) > EXACT * np.maximum(scale, 1e-300)):
        return None
    return ratio


def _rate(op: Op, k: int, operands: list[Any]) -> np.ndarray:
    """The derivative of an elementwise operation in operand `k`, entry by entry."""

    def value(x: Any) -> Any:
        values = [x if n == k else v for n, v in enumerate(operands)]
        if op.kind == "rule":
            return run(op.bodies[0], values, Editor(), True)[0]
        params = {n: p for n, p in op.params.items() if n != "sharding"}
        if "new_dtype" in params:
            return x
        return op.primitive.bind(*[widen(jnp.asarray(v)) for v in values], **params)

    x = jnp.asarray(operands[k])
    return np.asarray(jax.jvp(value, (x,), (jnp.ones_like(x),))[1])
