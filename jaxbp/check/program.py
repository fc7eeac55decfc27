"""Reading a function into a list of operations, each with the line of the user's source it comes from.

`read(fn, values)` traces a function and inlines every call (`jit`, `checkpoint`, and `custom_vjp`, whose
rule is thereby left out: what is differentiated is the function inside). `Program.run` evaluates the
list. With `wide=True` every floating value is float64, also where the traced code asked for less. An
`Editor` may change what a backward pass through an operation does without changing any value.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from jaxbp import jaxprs
from jaxbp.check.evaluate import run
from jaxbp.check.operations import Constant, Editor, Op, Place, Scope

JAX_FOLDER = os.path.dirname(jax.__file__) + os.sep
CHECK_FOLDER = os.path.dirname(__file__) + os.sep
FORMULAS = CHECK_FOLDER + os.path.join("diagnosis", "restated.py")  # stand for a user's function


@dataclass(eq=False)
class Program:
    """A function of a list of arrays, as operations."""

    scope: Scope
    out_tree: Any
    count: int

    def run(self, values: Sequence[Any], editor: Editor | None = None, wide: bool = True) -> list[Any]:
        """The outputs, flat. `wide` computes in float64 whatever the program was traced in."""
        return run(self.scope, list(values), editor or Editor(), wide)

    def __call__(self, *values: Any) -> Any:
        return jax.tree.unflatten(self.out_tree, self.run(values))


def read(fn: Callable[..., Any], values: Sequence[Any]) -> Program:
    """Trace `fn(*values)` into a `Program`."""
    trees = []

    def flat(*leaves: Any) -> list[Any]:
        out, tree = jax.tree.flatten(fn(*leaves))
        trees.append(tree)
        return out

    closed = jax.make_jaxpr(flat)(*values)
    reader = _Reader()
    return Program(reader.scope(closed), trees[-1], reader.count)


def all_ops(scope: Scope) -> list[Op]:
    """Every operation, with those of loop and branch bodies after the operation that holds them."""
    found = []
    for op in scope.ops:
        found.append(op)
        if op.kind != "rule":
            found += [inner for body in op.bodies for inner in all_ops(body)]
    return found


def has_rule(fn: Callable[..., Any], values: Sequence[Any]) -> bool:
    """Whether tracing `fn` meets a custom derivative rule that is not JAX's own."""

    def search(jaxpr: Any) -> bool:
        for eqn in jaxprs.opened(jaxpr)[0].eqns:
            if eqn.primitive.name == "custom_vjp_call":
                return True
            if eqn.primitive.name == "custom_jvp_call" and _inlined(eqn) is not None:
                return True
            if any(map(search, jaxprs.programs(eqn))):
                return True
        return False

    return search(jax.make_jaxpr(fn)(*values))


# --- reading ------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self) -> None:
        self.count, self.stack = 0, ""

    def fresh(self) -> int:
        self.count += 1
        return self.count

    def scope(self, closed: Any, place: Place | None = None, within: str = "") -> Scope:
        jaxpr, consts = jaxprs.opened(closed)
        inputs = [self.fresh() for _ in jaxpr.invars]
        ops: list[Op] = []
        outputs = self.body(jaxpr, consts, inputs, ops, place, within)
        return Scope(inputs, ops, outputs)

    def body(
        self, jaxpr: Any, consts: Any, args: list, ops: list[Op], place: Place | None, within: str
    ) -> list[Any]:
        names: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        if consts:
            names.update({v: _own(c, v.aval) for v, c in zip(jaxpr.constvars, consts, strict=True)})

        def name(v: Any) -> Any:
            return Constant(v.val) if isinstance(v, jex.Literal) else names[v]

        outer = self.stack
        for eqn in jaxpr.eqns:
            self.stack = f"{outer}/{eqn.source_info.name_stack}"
            operands = [name(v) for v in eqn.invars]
            found, named = _place(eqn)
            here, label = place or found, within or named
            inner = _inlined(eqn)
            if inner is not None:
                called, captured = jaxprs.opened(inner)
                label, library = _label(eqn, called, label)
                outs = self.body(called, captured, operands, ops, here if library else place, label)
                names.update(zip(eqn.outvars, outs, strict=True))
                continue
            outputs = [self.fresh() for _ in eqn.outvars]
            names.update(zip(eqn.outvars, outputs, strict=True))
            ops.append(self.op(eqn, operands, outputs, here, place, label))
        self.stack = outer
        return [name(v) for v in jaxpr.outvars]

    def op(
        self, eqn: Any, operands: list, outputs: list[int], here: Place, place: Place | None, within: str
    ) -> Op:
        primitive, params, kind, bodies = eqn.primitive, dict(eqn.params), "plain", []
        if primitive.name == "scan":
            kind, bodies = "scan", [self.scope(params["jaxpr"], place, within)]
        elif primitive.name == "while":
            kind = "while"
            bodies = [self.scope(params[k], place, within) for k in ("cond_jaxpr", "body_jaxpr")]
        elif primitive.name == "cond":
            kind, bodies = "cond", [self.scope(b, place, within) for b in params["branches"]]
        elif primitive.name == "custom_jvp_call":
            kind, bodies = "rule", [self.scope(params["call_jaxpr"], here, within)]
            within = jaxprs.name_of(jaxprs.opened(params["call_jaxpr"])[0]) or "custom_jvp"
        avals = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
        around = self.stack
        return Op(primitive, params, operands, outputs, *avals, here, within, kind, bodies, around)


def _own(captured: Any, aval: Any) -> Constant:
    """A captured array; one of NumPy's as a copy.

    JAX keeps what it made of a NumPy array for as long as a program holds it, and hands it out again:
    an index array that was traced while float64 was on would be int64 afterwards too.
    """
    return Constant(captured if isinstance(captured, jax.Array) else np.array(captured, aval.dtype))


def _inlined(eqn: Any) -> Any:
    """The jaxpr to put in place of a call, or `None` for an operation of its own."""
    inner = jaxprs.called(eqn)
    own = eqn.primitive.name == "custom_jvp_call" and _is_library(jaxprs.opened(inner)[0])
    return None if own else inner


def _label(eqn: Any, called: Any, within: str) -> tuple[str, bool]:
    """The name of the called function, and whether it is JAX's own (then the call is the place)."""
    if eqn.primitive.name in jaxprs.WRITTEN_OUT:
        return within, True
    library = _is_library(called)
    name = eqn.params.get("name") or jaxprs.name_of(called)
    return (within or name if library else within), library


def _is_library(jaxpr: Any) -> bool:
    return jaxprs.file_of(jaxpr).startswith(JAX_FOLDER)


def _place(eqn: Any) -> tuple[Place, str]:
    """The innermost line outside JAX and this package's checker, and the `jax.nn` function it calls."""
    traceback = getattr(eqn.source_info, "traceback", None)
    called = ""
    for n, frame in enumerate(traceback.frames if traceback is not None else ()):
        file = frame.file_name
        if file.startswith((JAX_FOLDER, "<frozen")):
            called = frame.function_name if f"{os.sep}nn{os.sep}" in file else called
        elif not file.startswith(CHECK_FOLDER) or file == FORMULAS:
            return Place(file, frame.line_num, *_columns(traceback, n)), called.rsplit(".", 1)[-1]
    return Place(), ""


def _columns(traceback: Any, n: int) -> tuple[int, int]:
    """Where in its line the expression of frame `n` begins and ends; 0 where that is not known."""
    if not hasattr(traceback, "raw_frames"):
        return 0, 0
    codes, instructions = traceback.raw_frames()
    positions = codes[n].co_positions() if n < len(codes) else iter(())
    line, last, column, end = next(
        itertools.islice(positions, instructions[n] // 2, None), (None, None, None, None)
    )
    return column or 0, (end or 0) if line == last else 0
