"""Where a derivative can go wrong: the edges of a program, and what people write there instead."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp.check import activations
from jaxbp.check.edits import Edge, Instead
from jaxbp.check.program import Constant, Editor, Op, Program, Scope, _run, _scan_counts, is_float, widen

MOST_STEPS = 64
BILINEAR = {"dot_general", "mul", "conv_general_dilated"}
MIXING = {"mul", "add", "sub", "div", "max", "min", "pow", "select_n", "atan2", "rem", "clamp", "add_any"}
UNARY = {
    "tanh",
    "logistic",
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "sin",
    "cos",
    "tan",
    "erf",
    "erfc",
    "erf_inv",
    "sqrt",
    "rsqrt",
    "cbrt",
    "integer_pow",
    "neg",
    "abs",
    "sign",
    "square",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "asinh",
    "acosh",
    "atanh",
    "convert_element_type",
    "copy",
    "lgamma",
    "digamma",
    "reduce_precision",
    "stop_gradient",
}

ACTIVATING = {
    "tanh",
    "logistic",
    "erf",
    "erfc",
    "sin",
    "cos",
    "max",
    "select_n",
    "exp",
    "expm1",
    "log1p",
    "abs",
}


class Sites:
    """The dependent part of a program: which values carry a derivative, and in which scope they live."""

    def __init__(self, program: Program):
        self.program = program
        self.live: set[int] = set()
        self.rank: dict[int, int] = {}
        self.scopes: list[Scope] = []
        self.holder: dict[int, Op | None] = {}
        self.home: dict[int, Scope] = {}
        self.producer: dict[int, Op] = {}
        self.shape: dict[int, tuple[int, ...]] = {}
        self._visit(program.scope, set(program.scope.inputs), None)

    def _visit(self, scope: Scope, live: set[int], holder: Op | None) -> None:
        self.scopes.append(scope)
        self.live |= live
        for op in scope.ops:
            self.home[id(op)], self.holder[id(op)] = scope, holder
            for v, aval in zip(op.inputs, op.in_avals, strict=True):
                if isinstance(v, int):
                    self.shape.setdefault(v, aval.shape)
            dependent = [isinstance(v, int) and v in self.live for v in op.inputs]
            if any(dependent) and op.primitive.name != "stop_gradient":
                for out, aval in zip(op.outputs, op.out_avals, strict=True):
                    if is_float(aval):
                        self.live.add(out)
            for out, aval in zip(op.outputs, op.out_avals, strict=True):
                self.producer[out], self.shape[out] = op, aval.shape
            if op.kind in ("scan", "while", "cond"):
                self._bodies(op, dependent)
            self.rank[id(op)] = len(self.rank)

    def _bodies(self, op: Op, dependent: list[bool]) -> None:
        for k, body in enumerate(op.bodies):
            first = _offset(op, k)
            count = len(body.inputs)
            inside = dependent[first : first + count] if op.kind != "while" else dependent
            inside = (inside + [any(dependent)] * count)[:count]
            if op.kind != "cond" and any(dependent):
                consts = _consts(op, k)
                inside = [d or i >= consts for i, d in enumerate(inside)]
            self._visit(body, {v for v, d in zip(body.inputs, inside, strict=True) if d}, op)

    def ops(self) -> Iterator[Op]:
        for scope in self.scopes:
            yield from scope.ops

    def is_live(self, op: Op, k: int) -> bool:
        v = op.inputs[k]
        return isinstance(v, int) and v in self.live and is_float(op.in_avals[k])

    # --- edges

    def edges(self) -> list[Edge]:
        """Every live operand, and every live value with several uses as a whole."""
        found = []
        for op in self.ops():
            if op.primitive.name == "stop_gradient" or not any(o in self.live for o in op.outputs):
                continue
            found += [Edge(op, k) for k in range(len(op.inputs)) if self.is_live(op, k)]
        for scope in self.scopes:
            uses = Counter(v for op in scope.ops for v in op.inputs if isinstance(v, int))
            uses.update(v for v in scope.outputs if isinstance(v, int))
            for op in scope.ops:
                many = [k for k, o in enumerate(op.outputs) if o in self.live and uses[o] > 1]
                found += [Edge(op, k, variable=True) for k in many]
        return found

    def rows(self) -> list[Edge]:
        """Weights along an axis: rows that go into a sum, and the turns of a loop."""
        found = []
        for op in self.ops():
            if op.primitive.name in ("reduce_sum", "dot_general"):
                for k in range(len(op.inputs)):
                    if self.is_live(op, k):
                        shape = op.in_avals[k].shape
                        axes = op.params["axes"] if "axes" in op.params else range(len(shape))
                        found += [
                            Edge(op, k, axis, shape[axis])
                            for axis in axes
                            if 1 < shape[axis] <= MOST_STEPS
                        ]
            holder = self.holder[id(op)]
            if holder is not None and holder.kind == "scan" and 1 < holder.params["length"] <= MOST_STEPS:
                fixed = set(self.home[id(op)].inputs[: _scan_counts(holder.params)[0]])
                for k, v in enumerate(op.inputs):
                    if self.is_live(op, k) and v in fixed:
                        found.append(Edge(op, k, size=holder.params["length"], steps=True))
        return found

    # --- other derivatives

    def own_entries(self) -> list[Instead]:
        """Sums that reach every entry (softmax, norms), followed from each output's own entry only."""
        found = []
        for scope in self.scopes:
            sums = {
                op.outputs[0]: op
                for op in scope.ops
                if op.primitive.name in ("reduce_sum", "reduce_prod") and self.is_live(op, 0)
            }
            for op in scope.ops:
                for k, v in enumerate(op.inputs):
                    if not self.is_live(op, k) or not _is_elementwise(op):
                        continue
                    chain, start = self._back_to(v, sums)
                    if start is not None and self._fits(op, sums[start]):
                        found.append(_own_entry(op, k, sums[start], chain))
        return found

    def _back_to(self, v: Any, sums: dict[int, Op]) -> tuple[list[Op], int | None]:
        """The chain of one-operand steps from a sum to the value `v`."""
        chain: list[Op] = []
        while isinstance(v, int) and v not in sums:
            op = self.producer.get(v)
            live = [u for k, u in enumerate(op.inputs) if self.is_live(op, k)] if op is not None else []
            moves = op is not None and (
                _is_elementwise(op) or op.primitive.name in ("broadcast_in_dim", "reshape")
            )
            if not moves or len(set(live)) != 1 or len(chain) > 8:
                return [], None
            chain.append(op)  # pyright: ignore[reportArgumentType]
            v = live[0]
        return chain[::-1], v if isinstance(v, int) else None

    def _fits(self, op: Op, total: Op) -> bool:
        return total.in_avals[0].shape == op.out_avals[0].shape

    def elementwise(self) -> list[Instead]:
        """Other functions' derivatives, and this one's at another point, for elementwise stretches."""
        found = []
        for scope in self.scopes:
            for start, end, ops in self._stretches(scope):
                found += _derivatives(start, end, ops)
                found += [
                    _elsewhere(start, end, ops, v, self.describe(v))
                    for v in self._like(scope, start, end)
                ]
        for op in self.ops():
            found += self._factors(op)
            if op.primitive.name in ("reduce_max", "reduce_min") and self.is_live(op, 0):
                found += _reductions(op)
        return found

    def _like(self, scope: Scope, start: int, end: Op) -> list[int]:
        """Other values of the same shape at which a derivative might be taken by mistake."""
        made = [o for op in scope.ops if not _is_elementwise(op) for o in op.outputs]
        same = [
            v
            for v in dict.fromkeys((*scope.inputs, *made))
            if v not in (start, end.outputs[0])
            and self.shape.get(v) == self.shape[start]
            and self._floating(v)
        ]
        return same[:8] if self.shape[start] else []

    def _stretches(self, scope: Scope) -> Iterator[tuple[int, Op, list[Op]]]:
        """`(value, operation, operations between)`: the result is elementwise in that value alone."""
        roots: dict[int, list[int]] = {}
        for op in scope.ops:
            live = [v for k, v in enumerate(op.inputs) if self.is_live(op, k)]
            if not _is_elementwise(op) or not live or op.outputs[0] not in self.live:
                continue
            if any(self.shape[v] != op.out_avals[0].shape for v in live):
                continue
            chains = [[*roots.get(v, []), v] for v in live]
            common = [v for v in chains[0] if all(v in chain for chain in chains)]
            if common:
                roots[op.outputs[0]] = common
        for out, starts in roots.items():
            op = self.producer[out]
            within = [o for o in scope.ops if self.rank[id(o)] <= self.rank[id(op)]]
            for start in dict.fromkeys((starts[0], starts[-1])):
                if (
                    start == starts[-1]
                    and op.primitive.name not in UNARY
                    and op.kind != "rule"
                    and len(starts) > 1
                ):
                    continue
                if (
                    start == starts[0]
                    and start != starts[-1]
                    and self._continues(out, roots, start, scope)
                ):
                    continue
                needed = _between(start, out, within)
                if any(_curved(o, start) for o in needed):
                    yield start, op, needed

    def _continues(self, out: int, roots: dict[int, list[int]], start: int, scope: Scope) -> bool:
        """Whether the stretch from `start` goes on after `out` in every use of it."""
        users = [o for o in scope.ops if out in o.inputs]
        further = [o for o in users if o.outputs and start in roots.get(o.outputs[0], [])]
        return bool(users) and len(further) == len(users) and out not in scope.outputs

    def _factors(self, op: Op) -> Iterator[Instead]:
        """A factor or a mask left out of the backward pass, or applied twice."""
        name = op.primitive.name
        if name == "mul":
            for k in (0, 1):
                other = 1 - k
                if not self.is_live(op, k) or prod(op.in_avals[other].shape) == 1:
                    continue
                yield Instead(
                    op, k, lambda x, y, env, k=k: x[k], "factor", "left out of the backward pass"
                )
                yield Instead(
                    op,
                    k,
                    lambda x, y, env, k=k, o=other: x[k] * jax.lax.stop_gradient(x[o]) ** 2,
                    "factor",
                    "applied twice in the backward pass",
                )
        if name == "div" and self.is_live(op, 0) and prod(op.in_avals[1].shape) > 1:
            yield Instead(op, 0, lambda x, y, env: x[0], "factor", "left out of the backward pass")
            yield Instead(
                op,
                0,
                lambda x, y, env: x[0] / jax.lax.stop_gradient(x[1]) ** 2,
                "factor",
                "applied twice in the backward pass",
            )
        if name == "select_n":
            for k in range(1, len(op.inputs)):
                if self.is_live(op, k) and op.in_avals[k].shape == op.out_avals[0].shape:
                    yield Instead(
                        op, k, lambda x, y, env, k=k: x[k], "mask", "left out of the backward pass"
                    )

    def operands(self) -> list[Instead]:
        """Products differentiated with another value, or with a turned one, in the place of a factor."""
        found = []
        for op in self.ops():
            if op.primitive.name not in BILINEAR or len(op.inputs) != 2:
                continue
            for k in (0, 1):
                if self.is_live(op, k):
                    found += list(self._other_factor(op, k))
        return found

    def _other_factor(self, op: Op, k: int) -> Iterator[Instead]:
        other = 1 - k
        shape = op.in_avals[other].shape
        here, scope = op.inputs[other], self.home[id(op)]
        for words, cause, turn in _turns(op, other, shape):
            yield Instead(op, k, _product(op, k, lambda x, env, t=turn, o=other: t(x[o])), cause, words)
        if not shape:
            return
        values = dict.fromkeys(
            v for v in (*scope.inputs, *(o for p in scope.ops for o in p.outputs)) if v != here
        )
        later = _carried(scope, self.holder[id(op)], here)
        for v in values:
            if self.shape.get(v) != shape or not self._floating(v):
                continue
            cause = "missing-rows" if v == later else "wrong-point"
            words = (
                "the new state of a turn in the place of the old one: off by one in time"
                if v == later
                else self.describe(v)
            )
            yield Instead(
                op, k, _product(op, k, lambda x, env, v=v: env[v]), cause, words, ahead=True, rank=1
            )

    def _floating(self, v: int) -> bool:
        op = self.producer.get(v)
        if op is None:
            return True
        return is_float(op.out_avals[op.outputs.index(v)])

    def describe(self, v: int) -> str:
        op = self.producer.get(v)
        if op is None:
            return "an argument"
        text = f", `{op.place.text}`" if op.place.text else ""
        return f"the result of `{op.name}` at {op.place}{text}"


def _own_entry(op: Op, k: int, total: Op, chain: list[Op]) -> Instead:
    """The operation, with the sum behind operand `k` depending, at every entry, on that entry alone."""

    def make(inputs: list[Any], results: list[Any], env: dict) -> Any:
        entries = env[total.inputs[0]]
        still = jax.lax.stop_gradient
        axes = tuple(total.params["axes"])
        summed = jnp.broadcast_to(jnp.expand_dims(still(env[total.outputs[0]]), axes), entries.shape)
        own = still(summed) + entries - still(entries)
        if total.primitive.name == "reduce_prod":
            own = still(summed) + still(summed / entries) * (entries - still(entries))
        live = {total.outputs[0]: own}
        for step in chain:
            if _is_elementwise(step):
                operands = [
                    live[v]
                    if v in live
                    else _spread_out(widen(v.value) if isinstance(v, Constant) else still(env[v]), own)
                    for v in step.inputs
                ]
                live[step.outputs[0]] = _again(step, operands)
            else:
                live[step.outputs[0]] = next(live[v] for v in step.inputs if v in live)
        operands = [still(x) for x in inputs]
        operands[k] = live[op.inputs[k]]
        return _again(op, [_spread_out(x, own) for x in operands])

    words = "from each output's own entry alone"
    return Instead(op, k, make, "missing-path", words)


def _spread_out(x: Any, like: Any) -> Any:
    """A constant in the shape of the entries: scalars as they are, sums along their lost axes."""
    x = jnp.asarray(x)
    if x.shape == like.shape:
        return x
    if x.ndim == like.ndim:
        return jnp.broadcast_to(x, like.shape)
    return jnp.broadcast_to(x.reshape((*x.shape, *(1,) * (like.ndim - x.ndim))), like.shape)


def _again(op: Op, operands: list[Any]) -> Any:
    """The operation on other operands."""
    numbers = [-1 - i for i in range(len(operands))]
    clone = Op(
        op.primitive,
        op.params,
        numbers,
        op.outputs,
        op.in_avals,
        op.out_avals,
        op.place,
        op.within,
        op.kind,
        op.bodies,
    )
    return _run(Scope(numbers, [clone], op.outputs), operands, Editor(), True)[0]


def _offset(op: Op, k: int) -> int:
    return {"scan": 0, "cond": 1, "while": 0 if k == 0 else op.params.get("cond_nconsts", 0)}[op.kind]


def _consts(op: Op, k: int) -> int:
    if op.kind == "scan":
        return _scan_counts(op.params)[0]
    return op.params["cond_nconsts" if k == 0 else "body_nconsts"]


def _is_elementwise(op: Op) -> bool:
    if op.kind == "rule":
        return len(op.outputs) == 1
    return op.kind == "plain" and op.primitive.name in UNARY | MIXING and len(op.outputs) == 1


def _between(start: int, end: int, ops: list[Op]) -> list[Op]:
    """The operations that lead from `start` to `end`."""
    reached, used = {start}, []
    for op in ops:
        if any(isinstance(v, int) and v in reached for v in op.inputs) and _is_elementwise(op):
            reached.update(op.outputs)
            used.append(op)
    wanted, needed = {end}, []
    for op in reversed(used):
        if any(o in wanted for o in op.outputs):
            needed.append(op)
            wanted.update(v for v in op.inputs if isinstance(v, int) and v in reached)
    return needed[::-1]


def _curved(op: Op, start: int) -> bool:
    """Whether the operation can be anything but linear in what comes in."""
    if op.primitive.name in (
        "neg",
        "convert_element_type",
        "copy",
        "add",
        "sub",
        "add_any",
        "stop_gradient",
    ):
        return False
    if op.primitive.name in ("mul", "div"):
        return all(isinstance(v, int) for v in op.inputs)
    return True


def _sloped(start: int, end: Op, ops: list[Op], choice: Callable[[Any, Any, Any, dict], Any]) -> Any:
    """A stretch with derivative `choice(input, output, slope, values)`; `slope(v)` is its own at `v`."""
    scope = Scope([start], ops, [end.outputs[0]])

    def make(inputs: list[Any], results: list[Any], env: dict) -> Any:
        still = {k: jax.lax.stop_gradient(v) for k, v in env.items()}

        def slope(u: Any) -> Any:
            return jax.jvp(lambda value: _evaluate(scope, value, still), (u,), (jnp.ones_like(u),))[1]

        chosen = choice(still[start], jax.lax.stop_gradient(results[0]), slope, still)
        finite = jnp.nan_to_num(chosen, nan=0.0, posinf=0.0, neginf=0.0)
        return jax.lax.stop_gradient(finite) * env[start]

    return make


def _derivatives(start: int, end: Op, ops: list[Op]) -> Iterator[Instead]:
    def of(choice: Callable[[Any, Any, Any], Any]) -> Any:
        return _sloped(start, end, ops, lambda u, h, slope, env: choice(u, h, slope))

    yield Instead(end, -1, of(lambda u, h, f: f(h)), "wrong-point", "at the output instead of the input")
    yield Instead(end, -1, of(lambda u, h, f: f(u) ** 2), "wrong-activation", "twice over")
    for words, side in (("positive", jnp.greater), ("negative", jnp.less)):
        some = of(lambda u, h, f, side=side: f(u) * side(u, 0))
        yield Instead(end, -1, some, "missing-rows", f"only where its input is {words}, and 0 elsewhere")
    likely = any(op.kind == "rule" or op.primitive.name in ACTIVATING for op in ops)
    for words, cause, derivative in activations.alternatives():
        if not likely and words != "of the identity":
            continue
        yield Instead(end, -1, of(lambda u, h, f, d=derivative: d(u, h)), cause, words)


def _elsewhere(start: int, end: Op, ops: list[Op], v: int, words: str) -> Instead:
    make = _sloped(start, end, ops, lambda u, h, slope, env: slope(env[v]))
    return Instead(end, -1, make, "wrong-point", f"at another value, {words}", ahead=True, rank=1)


def _reductions(op: Op) -> Iterator[Instead]:
    """A maximum whose error is sent to every entry, or shared out among them."""
    axes = tuple(op.params["axes"])
    for words, combine in (("of the sum", jnp.sum), ("of the mean", jnp.mean)):
        yield Instead(op, 0, lambda x, y, env, f=combine: f(x[0], axis=axes), "wrong-activation", words)


def _evaluate(scope: Scope, value: Any, env: dict) -> Any:
    inner = {**env, scope.inputs[0]: value}
    for op in scope.ops:
        operands = [widen(v.value) if isinstance(v, Constant) else inner[v] for v in op.inputs]
        inner[op.outputs[0]] = _again(op, operands)
    return inner[scope.outputs[0]]


def _product(op: Op, k: int, factor: Callable[[list[Any], dict], Any]) -> Any:
    """The product with another value in the place of the factor that is not operand `k`."""

    def make(inputs: list[Any], results: list[Any], env: dict) -> Any:
        operands = list(inputs)
        operands[1 - k] = jax.lax.stop_gradient(factor(inputs, env))
        return _again(op, operands)

    return make


def _turns(op: Op, other: int, shape: tuple[int, ...]) -> Iterator[tuple[str, str, Any]]:
    axes = range(len(shape))
    if op.primitive.name == "conv_general_dilated":
        spec = op.params["dimension_numbers"]
        spatial = (spec.rhs_spec if other == 1 else spec.lhs_spec)[2:]
        what = "kernel" if other == 1 else "image"
        for count in range(1, len(spatial) + 1):
            for some in itertools.combinations(spatial, count):
                yield (
                    f"the {what} turned round along axis {list(some)}",
                    "flip",
                    lambda v, s=some: jnp.flip(v, s),
                )
    for i, j in itertools.combinations(axes, 2):
        if shape[i] == shape[j] > 1:
            words = f"the other factor with axes {i} and {j} exchanged"
            yield words, "transpose", lambda v, i=i, j=j: jnp.swapaxes(v, i, j)
    if op.primitive.name == "dot_general":
        for axis in axes:
            if shape[axis] > 2:
                words = f"the other factor moved by one along axis {axis}"
                for step in (1, -1):
                    yield words, "missing-rows", lambda v, a=axis, s=step: jnp.roll(v, s, a)


def _carried(scope: Scope, holder: Op | None, v: Any) -> int | None:
    """The value that the next turn of the loop gets for the carry `v`."""
    if holder is None or holder.kind != "scan" or v not in scope.inputs:
        return None
    consts, carry = _scan_counts(holder.params)
    at = scope.inputs.index(v) - consts
    if not 0 <= at < carry:
        return None
    out = scope.outputs[at]
    return out if isinstance(out, int) else None
