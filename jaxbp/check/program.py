"""A function as a list of operations that can be read, run in float64, and have its derivative edited.

`read(fn, values)` traces a function and inlines every call (`jit`, `checkpoint`, and `custom_vjp`, whose
rule is thereby left out: what is differentiated is the function inside). `Program.run` evaluates the
list operation by operation. With `wide=True` every floating value is float64, also where the traced
code asked for less. An `Editor` may change what a backward pass through an operation does without
changing any value; `cuts.py` is made of that.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

JAX_FOLDER = os.path.dirname(jax.__file__) + os.sep
CHECK_FOLDER = os.path.dirname(__file__) + os.sep
INLINED = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_vjp_call")
REINTERPRETED = ("bitcast_convert_type", "pallas_call", "pure_callback", "io_callback")


@dataclass(frozen=True)
class Place:
    """A line of the user's source."""

    file: str = ""
    line: int = 0
    function: str = ""

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}" if self.file else "a line inside a library"

    @property
    def text(self) -> str:
        """The line itself, as far as the file can be read."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""


@dataclass(eq=False)
class Op:
    """One operation. Operands are `int` (a value's number) or `Constant`; `bodies` are scopes."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Any]
    outputs: list[int]
    in_avals: list[Any]
    out_avals: list[Any]
    place: Place
    within: str
    kind: str
    bodies: list[Scope] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.within if self.kind == "rule" else self.primitive.name


@dataclass(eq=False)
class Constant:
    """A literal or a captured array."""

    value: Any


@dataclass(eq=False)
class Scope:
    """A straight list of operations: the program, or the body of a loop or branch."""

    inputs: list[int]
    ops: list[Op]
    outputs: list[Any]


class Editor:
    """What `Program.run` asks on its way. This one changes nothing."""

    def enter(self, scope: Scope, values: list[Any], run: Callable[[Editor], Any]) -> None:
        """Called on entering a scope; `run(editor)` runs the scope on its own."""

    def leave(self) -> None:
        """Called on leaving it."""

    def turn(self, op: Op, index: Any) -> None:
        """Called in every turn of the scan `op`, with the number of the turn."""

    def operands(self, op: Op, values: list[Any]) -> list[Any]:
        return values

    def results(self, op: Op, operands: list[Any], results: list[Any], env: dict) -> list[Any]:
        return results


def is_float(x: Any) -> bool:
    """Whether `x` (an array or an aval) has a floating dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def widen(x: Any) -> Any:
    """`x` in float64 where it is floating."""
    if not is_float(x) or x.dtype == np.float64:
        return x
    return jnp.asarray(x).astype(np.float64)


# --- reading ------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self) -> None:
        self.count = 0

    def fresh(self) -> int:
        self.count += 1
        return self.count

    def scope(self, closed: Any, place: Place | None = None, within: str = "") -> Scope:
        jaxpr, consts = _open(closed)
        inputs = [self.fresh() for _ in jaxpr.invars]
        ops: list[Op] = []
        outputs = self.body(jaxpr, consts, inputs, ops, place, within)
        return Scope(inputs, ops, outputs)

    def body(
        self, jaxpr: Any, consts: Any, args: list, ops: list[Op], place: Place | None, within: str
    ) -> list[Any]:
        names: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
        if consts:
            names.update(zip(jaxpr.constvars, map(Constant, consts), strict=True))

        def name(v: Any) -> Any:
            return Constant(v.val) if isinstance(v, jex.Literal) else names[v]

        for eqn in jaxpr.eqns:
            operands = [name(v) for v in eqn.invars]
            found, named = _place(eqn)
            here, label = place or found, within or named
            inner = _inlined(eqn)
            if inner is not None:
                called, captured = _open(inner)
                label, library = _label(eqn, called, label)
                outs = self.body(called, captured, operands, ops, here if library else place, label)
                names.update(zip(eqn.outvars, outs, strict=True))
                continue
            outputs = [self.fresh() for _ in eqn.outvars]
            names.update(zip(eqn.outvars, outputs, strict=True))
            ops.append(self.op(eqn, operands, outputs, here, place, label))
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
            within = _function_name(_open(params["call_jaxpr"])[0]) or "custom_jvp"
        avals = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
        return Op(primitive, params, operands, outputs, *avals, here, within, kind, bodies)


def _open(jaxpr: Any) -> tuple[Any, Any]:
    """`(jaxpr, consts)` of a closed or an open jaxpr (newer JAX has only one kind)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _inlined(eqn: Any) -> Any:
    """The jaxpr to put in place of a call, or `None` for an operation of its own."""
    if eqn.primitive.name in INLINED:
        return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if eqn.primitive.name == "custom_jvp_call":
        inner = eqn.params["call_jaxpr"]
        return None if _file(_open(inner)[0]).startswith(JAX_FOLDER) else inner
    return None


def _label(eqn: Any, called: Any, within: str) -> tuple[str, bool]:
    """The name of the called function, and whether it is JAX's own (then the call is the place)."""
    library = _file(called).startswith(JAX_FOLDER)
    name = eqn.params.get("name") or _function_name(called)
    return (within or name if library else within), library


def _file(jaxpr: Any) -> str:
    info = getattr(jaxpr, "debug_info", None)
    return getattr(info, "func_filename", None) or ""


def _function_name(jaxpr: Any) -> str:
    info = getattr(jaxpr, "debug_info", None)
    return (getattr(info, "func_src_info", None) or "").split(" ")[0]


def _place(eqn: Any) -> tuple[Place, str]:
    """The innermost line outside JAX and this package's checker, and the `jax.nn` function it calls."""
    traceback = getattr(eqn.source_info, "traceback", None)
    called = ""
    for frame in traceback.frames if traceback is not None else ():
        file = frame.file_name
        if file.startswith((JAX_FOLDER, "<frozen")):
            called = frame.function_name if f"{os.sep}nn{os.sep}" in file else called
        elif not file.startswith(CHECK_FOLDER) or file.endswith("gallery.py"):
            return Place(file, frame.line_num, frame.function_name.rsplit(".", 1)[-1]), called.rsplit(
                ".", 1
            )[-1]
    return Place(), ""


# --- running ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Program:
    """A function of a list of arrays, as operations."""

    scope: Scope
    out_tree: Any
    count: int

    def run(self, values: Sequence[Any], editor: Editor | None = None, wide: bool = True) -> list[Any]:
        """The outputs, flat. `wide` computes in float64 whatever the program was traced in."""
        return _run(self.scope, list(values), editor or Editor(), wide)

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


def _run(scope: Scope, values: list[Any], editor: Editor, wide: bool) -> list[Any]:
    if wide:
        values = [widen(v) for v in values]
    env: dict[int, Any] = dict(zip(scope.inputs, values, strict=True))
    editor.enter(scope, values, lambda other: _run(scope, values, other, wide))

    def value(v: Any) -> Any:
        if isinstance(v, Constant):
            return widen(v.value) if wide else v.value
        return env[v]

    for op in scope.ops:
        operands = editor.operands(op, [value(v) for v in op.inputs])
        outs = RUN[op.kind](op, operands, editor, wide)
        outs = [widen(o) for o in outs] if wide else outs
        env.update(zip(op.outputs, editor.results(op, operands, outs, env), strict=True))
    editor.leave()
    return [jnp.asarray(value(v)) for v in scope.outputs]


def _plain(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    params = op.params
    if wide and op.primitive.name in REINTERPRETED:
        operands = _narrow(op, operands)
    elif wide:
        params = {k: _wide_dtype(v) for k, v in params.items()}
    out = op.primitive.bind(*operands, **op.primitive.get_bind_params(params))
    return list(out) if op.primitive.multiple_results else [out]


def _narrow(op: Op, operands: list[Any]) -> list[Any]:
    return [
        jnp.asarray(v).astype(a.dtype) if is_float(a) else v
        for v, a in zip(operands, op.in_avals, strict=True)
    ]


def _wide_dtype(param: Any) -> Any:
    try:
        narrow = isinstance(param, np.dtype | type) and jnp.issubdtype(param, jnp.floating)
    except TypeError:
        return param
    return np.dtype(np.float64) if narrow else param


def _rule(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    """A `custom_jvp` of JAX's own (`relu`): its rule is trusted, where dtypes let it be used."""
    same = all(
        not is_float(a) or v.dtype == a.dtype
        for v, a in zip(map(jnp.asarray, operands), op.in_avals, strict=True)
    )
    return (
        _plain(op, operands, editor, wide=False) if same else _run(op.bodies[0], operands, editor, wide)
    )


def _scan(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    consts, carry = _scan_counts(op.params)
    fixed, init, xs = operands[:consts], operands[consts : consts + carry], operands[consts + carry :]
    init = [jnp.asarray(v) for v in init]

    def body(state: list[Any], x: tuple[Any, list[Any]]) -> Any:
        editor.turn(op, x[0])
        outs = _run(op.bodies[0], [*fixed, *state, *x[1]], editor, wide)
        return outs[:carry], outs[carry:]

    turns = jnp.arange(op.params["length"], dtype=np.int32)
    state, ys = jax.lax.scan(body, init, (turns, xs), reverse=op.params["reverse"])
    return [*state, *ys]


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def _while(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    of_cond, of_body = operands[:first], operands[first : first + second]

    def test(state: list[Any]) -> Any:
        return _run(op.bodies[0], [*of_cond, *state], Editor(), wide)[0]

    def body(state: list[Any]) -> list[Any]:
        return _run(op.bodies[1], [*of_body, *state], editor, wide)

    return list(jax.lax.while_loop(test, body, [jnp.asarray(v) for v in operands[first + second :]]))


def _cond(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    branches = [lambda *args, scope=scope: _run(scope, list(args), editor, wide) for scope in op.bodies]
    return list(jax.lax.switch(jnp.asarray(operands[0]).astype(np.int32), branches, *operands[1:]))


RUN: dict[str, Callable[..., list[Any]]] = {
    "plain": _plain,
    "rule": _rule,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


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
        jaxpr, _ = _open(jaxpr)
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "custom_vjp_call":
                return True
            if eqn.primitive.name == "custom_jvp_call" and _inlined(eqn) is not None:
                return True
            for param in eqn.params.values():
                for part in param if isinstance(param, tuple | list) else (param,):
                    if (hasattr(part, "eqns") or hasattr(part, "jaxpr")) and search(part):
                        return True
        return False

    return search(jax.make_jaxpr(fn)(*values))
