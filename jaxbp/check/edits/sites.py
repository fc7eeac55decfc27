"""Where a derivative can go wrong: the edges of a program along which an error comes back.

`Sites` knows which values depend on the arguments, where each is made and in which scope it lives. Its
`edges` are the operands that can be cut; `rows` the axes and turns along which a cut can be partial.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from jaxbp.check.edits.edit import Edge
from jaxbp.check.operations import Op, Scope, is_float, is_inexact
from jaxbp.check.program import Program

MOST_STEPS = 64
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


class Sites:
    """The dependent part of a program: which values carry a derivative, and in which scope they live."""

    def __init__(self, program: Program, names: Sequence[str] = ()):
        self.program = program
        self.names = dict(zip(program.scope.inputs, names, strict=False))
        self.live: set[int] = set()
        self.rank: dict[int, int] = {}
        self.scopes: list[Scope] = []
        self.holder: dict[int, Op | None] = {}
        self.home: dict[int, Scope] = {}
        self.producer: dict[int, Op] = {}
        self.shape: dict[int, tuple[int, ...]] = {}
        self.is_float_input: dict[int, bool] = {}
        self._visit(program.scope, set(program.scope.inputs), None)

    def _visit(self, scope: Scope, live: set[int], holder: Op | None) -> None:
        self.scopes.append(scope)
        self.live |= live
        for op in scope.ops:
            self.home[id(op)], self.holder[id(op)] = scope, holder
            for v, aval in zip(op.inputs, op.in_avals, strict=True):
                if isinstance(v, int):
                    self.shape.setdefault(v, aval.shape)
                    self.is_float_input.setdefault(v, is_float(aval))
            dependent = [isinstance(v, int) and v in self.live for v in op.inputs]
            if any(dependent) and op.primitive.name != "stop_gradient":
                for out, aval in zip(op.outputs, op.out_avals, strict=True):
                    if is_inexact(aval):
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
        return isinstance(v, int) and v in self.live and is_inexact(op.in_avals[k])

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
            if op.primitive.name in ("gather", "broadcast_in_dim") and self.is_live(op, 0):
                found += _spread(op)
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
            if holder is not None and holder.kind == "scan" and 1 < holder.loop.length <= MOST_STEPS:
                fixed = set(self.home[id(op)].inputs[: holder.loop.consts])
                for k, v in enumerate(op.inputs):
                    if self.is_live(op, k) and v in fixed:
                        found.append(Edge(op, k, size=holder.loop.length, steps=True))
        return found

    def floating(self, v: int) -> bool:
        """Whether a value has a floating dtype."""
        op = self.producer.get(v)
        if op is None:
            return self.is_float_input.get(v, True)
        return is_float(op.out_avals[op.outputs.index(v)])

    def describe(self, v: int) -> str:
        op = self.producer.get(v)
        if op is None:
            return f"the argument {self.names[v]}" if v in self.names else "an argument"
        part = op.place.expression or op.place.text
        text = f", `{part}`" if part else ""
        return f"the result of `{op.name}` at {op.place}{text}"


def _spread(op: Op) -> list[Edge]:
    """The axes along which a value is broadcast or looked up more than once."""
    shape, kept = op.out_avals[0].shape, op.params.get("broadcast_dimensions", ())
    grown = [
        a
        for a, n in enumerate(shape)
        if 1 < n <= MOST_STEPS and (a not in kept or op.in_avals[0].shape[kept.index(a)] == 1)
    ]
    return [Edge(op, 0, a, shape[a], variable=True) for a in grown]


def _offset(op: Op, k: int) -> int:
    return {"scan": 0, "cond": 1, "while": 0 if k == 0 else op.params.get("cond_nconsts", 0)}[op.kind]


def _consts(op: Op, k: int) -> int:
    if op.kind == "scan":
        return op.loop.consts
    return op.params["cond_nconsts" if k == 0 else "body_nconsts"]


def is_elementwise(op: Op) -> bool:
    """Whether every entry of the result depends on the same entry of the operands alone."""
    if op.kind == "rule":
        return len(op.outputs) == 1
    return op.kind == "plain" and op.primitive.name in UNARY | MIXING and len(op.outputs) == 1
