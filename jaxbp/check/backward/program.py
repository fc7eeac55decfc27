"""Autodiff's backward pass of a function, as operations that can be changed and run again.

`Backward` traces `vjp` of the oracle's program and reads what it makes: every operation knows the line of
the *forward* pass that it comes from (each operation of that one runs in a `named_scope` of its own, and
the name survives transposition), and which of its operands carry an error, that is, are linear in the
cotangent. The others are coefficients. The error as it arrives and each cotangent as it is returned are
operations of their own, that copy, so that they are edges like any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.backward.in_numpy import apply
from jaxbp.check.operations import Constant, Editor, Op, Place, Scope, is_float, widen
from jaxbp.check.oracle import Oracle, float64
from jaxbp.check.program import all_ops, read

COPY = SimpleNamespace(name="copy", multiple_results=False)
MARK = re.compile(r"jaxbp_op(\d+)")
Env = dict[int, Any]
Change = Callable[[Callable[[list[Any]], list[Any]], list[Any], Env], list[Any]]
Changes = dict[int, Change]


class _Marked(Editor):
    """Gives every operation a name that its derivative keeps."""

    def around(self, op: Op) -> Any:
        return jax.named_scope(f"jaxbp_op{op.outputs[0]}" if op.outputs else "")


class Backward:
    """The backward pass at given shapes: `values(leaves, dy)`, and `again` with some operations changed.

    `linear[id(op)]` says of each operand whether it carries an error; `top[id(op)]` is the operation of
    the outermost scope that holds it. A change is `change(run, operands, env) -> results`, where `run`
    is the operation itself and `env` holds the unchanged values; `turn` is the turn of the loop that is
    being run, and `outer` are the values around it.
    """

    def __init__(self, oracle: Oracle, leaves: list[Any], dy: list[Any]):
        self.count = len(leaves)
        self.turn, self.outer = 0, {}
        with float64():
            program = read(
                lambda *a: jax.vjp(
                    lambda *x: [y for y in oracle.program.run(x, _Marked()) if is_float(y)],
                    *a[: self.count],
                )[1](list(a[self.count :])),
                [jnp.asarray(v, jnp.float64) for v in (*leaves, *dy)],
            )
        self.scope = program.scope
        self._name(oracle)
        self._edges(program.count)
        self.ops: list[Op] = []
        self.top: dict[int, Op] = {}
        self.home: dict[int, Scope] = {}
        self._place(self.scope, None)
        self.order = {id(op): n for n, op in enumerate(self.ops)}
        self.at_top = {id(op): n for n, op in enumerate(self.scope.ops)}
        self.producer = {v: op for op in self.ops for v in op.outputs}
        self.linear: dict[int, list[bool]] = {}
        self._tag(self.scope, set(self.scope.inputs[self.count :]))

    def _name(self, oracle: Oracle) -> None:
        """The lines of the forward pass, and constants as NumPy's."""
        origin = {op.outputs[0]: op for op in all_ops(oracle.program.scope) if op.outputs}
        for op in all_ops(self.scope):
            marks = MARK.findall(op.stack)
            first = origin.get(int(marks[-1])) if marks else None
            op.place, op.within = (first.place, first.within) if first else (Place(), "")
            op.origin = first
            for v in op.inputs:
                if isinstance(v, Constant):
                    v.value = np.asarray(widen(v.value))

    def _edges(self, count: int) -> None:
        """Copies of the errors that arrive and of the cotangents that are returned."""
        scope, arrive = self.scope, []
        made: dict[int, int] = {}
        for v in scope.inputs[self.count :]:
            count += 1
            made[v] = count
            arrive.append(Op(COPY, {}, [v], [count], [None], [None], Place(), "", "plain"))
        renamed = lambda v: made.get(v, v) if isinstance(v, int) else v  # noqa: E731
        for op in scope.ops:
            op.inputs = [renamed(v) for v in op.inputs]
        self.returned = []
        for v in map(renamed, scope.outputs):
            count += 1
            self.returned.append(Op(COPY, {}, [v], [count], [None], [None], Place(), "", "plain"))
        self.arriving = arrive
        scope.ops[:] = [*arrive, *scope.ops, *self.returned]
        scope.outputs[:] = [op.outputs[0] for op in self.returned]

    def _place(self, scope: Scope, top: Op | None) -> None:
        for op in scope.ops:
            self.top[id(op)], self.home[id(op)] = top or op, scope
            self.ops.append(op)
            for body in op.bodies if op.kind == "scan" else ():
                self._place(body, top or op)

    def _tag(self, scope: Scope, live: set[Any]) -> set[Any]:
        """Which values of a scope are linear in the cotangent."""
        for op in scope.ops:
            flags = [isinstance(v, int) and v in live for v in op.inputs]
            self.linear[id(op)] = flags
            if op.kind == "scan":
                live |= self._tag_loop(op, flags)
            elif any(flags):
                live |= set(op.outputs)
        return live

    def _tag_loop(self, op: Op, flags: list[bool]) -> set[Any]:
        body, (consts, carry) = op.bodies[0], (op.loop.consts, op.loop.carry)
        inner = {v for v, f in zip(body.inputs, flags, strict=True) if f}
        while True:
            live = self._tag(body, set(inner))
            more = {body.inputs[consts + k] for k in range(carry) if body.outputs[k] in _ints(live)}
            if more <= inner:
                return {
                    o
                    for o, b in zip(op.outputs, body.outputs, strict=True)
                    if isinstance(b, int) and b in live
                }
            inner |= more

    # --- running

    def values(self, leaves: list[Any], dy: list[Any]) -> Env:
        """Every value of the outermost scope."""
        inputs = [np.asarray(v, np.float64) for v in (*leaves, *dy)]
        with np.errstate(all="ignore"):
            return self._run(self.scope, inputs, {})

    def again(self, env: Env, changes: Changes) -> list[Any]:
        """The cotangents with some operations changed; only what depends on them is run."""
        tops = {id(self.top[key]) for key in changes}
        new: Env = {}
        get = lambda v: v.value if isinstance(v, Constant) else new.get(v, env.get(v))  # noqa: E731
        self.spent, self.outer = 0, env
        with np.errstate(all="ignore"):
            for op in self.scope.ops[min(self.at_top[key] for key in tops) :]:
                if id(op) in tops or any(v in new for v in op.inputs if isinstance(v, int)):
                    results = self._results(op, [get(v) for v in op.inputs], env, changes)
                    new.update(zip(op.outputs, results, strict=True))
                    self.spent += op.loop.length * len(op.bodies[0].ops) if op.kind == "scan" else 1
                    self.spent += sum(map(np.size, results)) // 2000
        return [get(v) for v in self.scope.outputs]

    def _run(self, scope: Scope, inputs: list[Any], changes: Changes) -> Env:
        env: Env = dict(zip(scope.inputs, inputs, strict=True))
        for op in scope.ops:
            operands = [v.value if isinstance(v, Constant) else env[v] for v in op.inputs]
            env.update(zip(op.outputs, self._results(op, operands, env, changes), strict=True))
        return env

    def _results(self, op: Op, operands: list[Any], env: Env, changes: Changes) -> list[Any]:
        run = (lambda x: self._loop(op, x, changes)) if op.kind == "scan" else (lambda x: apply(op, x))
        change = changes.get(id(op))
        return change(run, operands, env) if change else run(operands)

    def _loop(self, op: Op, operands: list[Any], changes: Changes) -> list[Any]:
        loop, body = op.loop, op.bodies[0]
        fixed, state, slices = loop.divide(operands)
        outs: dict[int, list[Any]] = {}
        for t in loop.turns():
            self.turn = t
            env = self._run(body, [*fixed, *state, *(x[t] for x in slices)], changes)
            made = [v.value if isinstance(v, Constant) else env[v] for v in body.outputs]
            state, outs[t] = made[: loop.carry], made[loop.carry :]
        stacked = [np.stack(x) for x in zip(*(outs[t] for t in sorted(outs)), strict=True)]
        return [*state, *stacked]


def _ints(live: set[Any]) -> set[Any]:
    return {v for v in live if isinstance(v, int)}
