"""Running a program operation by operation, in float64 if asked, with an editor looking on.

Loops and branches are run as JAX runs them (`lax.scan`, `lax.while_loop`, `lax.switch`), with the bodies
interpreted in turn, so that an editor reaches the operations inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.operations import Constant, Editor, Op, Scope, is_float, widen

SCATTERS = {
    "scatter-add": jax.lax.scatter_add,
    "scatter_add": jax.lax.scatter_add,
    "scatter_mul": jax.lax.scatter_mul,
    "scatter_min": jax.lax.scatter_min,
    "scatter_max": jax.lax.scatter_max,
}
REINTERPRETED = ("bitcast_convert_type", "pallas_call", "pure_callback", "io_callback")


def run(scope: Scope, values: list[Any], editor: Editor, wide: bool) -> list[Any]:
    """The outputs of a scope; `wide` computes in float64 whatever the program was traced in."""
    if wide:
        values = [widen(v) for v in values]
    env: dict[int, Any] = dict(zip(scope.inputs, values, strict=True))
    editor.enter(scope, values)

    def value(v: Any) -> Any:
        if isinstance(v, Constant):
            return widen(v.value) if wide else v.value
        return env[v]

    for op in scope.ops:
        operands = editor.operands(op, [value(v) for v in op.inputs])
        with editor.around(op):
            outs = RUN[op.kind](op, operands, editor, wide)
        outs = [widen(o) for o in outs] if wide else outs
        env.update(zip(op.outputs, editor.results(op, operands, outs, env), strict=True))
    return [jnp.asarray(value(v)) for v in scope.outputs]


def again(op: Op, operands: list[Any]) -> Any:
    """The first result of an operation, run in float64 on other operands."""
    return RUN[op.kind](op, [widen(v) for v in operands], Editor(), True)[0]


def ahead(producers: dict[int, Op], env: dict[int, Any], v: Any, steps: int) -> Any:
    """A value of a scope, computed ahead of its time where `env` does not hold it yet.

    Raises `KeyError` where that takes more than so many steps.
    """
    if isinstance(v, Constant):
        return widen(v.value)
    if v in env or steps == 0 or producers[v].outputs != [v]:
        return env[v]
    maker = producers[v]
    return again(maker, [ahead(producers, env, u, steps - 1) for u in maker.inputs])


def _plain(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    params = op.params
    if wide and op.primitive.name in SCATTERS:
        kept = {
            k: params[k] for k in ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        }
        return [SCATTERS[op.primitive.name](*operands, **kept)]  # `update_jaxpr` has the traced dtype
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
        if not isinstance(param, np.dtype | type) or not jnp.issubdtype(param, jnp.inexact):
            return param
    except TypeError:
        return param
    return np.dtype(np.float64 if jnp.issubdtype(param, jnp.floating) else np.complex128)


def _rule(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    """A `custom_jvp` of JAX's own (`relu`): its rule is trusted, where dtypes let it be used."""
    same = all(
        not is_float(a) or v.dtype == a.dtype
        for v, a in zip(map(jnp.asarray, operands), op.in_avals, strict=True)
    )
    return _plain(op, operands, editor, wide=False) if same else run(op.bodies[0], operands, editor, wide)


def _scan(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    loop = op.loop
    fixed, init, xs = loop.divide(operands)
    init = [jnp.asarray(v) for v in init]

    def body(state: list[Any], x: tuple[Any, list[Any]]) -> Any:
        editor.begin()
        editor.turn(op, x[0])
        outs = run(op.bodies[0], [*fixed, *state, *x[1]], editor, wide)
        return outs[: loop.carry], (outs[loop.carry :], editor.end())

    turns = jnp.arange(loop.length, dtype=np.int32)
    state, (ys, left) = jax.lax.scan(body, init, (turns, xs), reverse=loop.reverse)
    editor.keep(left)
    return [*state, *ys]


def _while(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    of_cond, of_body = operands[:first], operands[first : first + second]

    def test(state: list[Any]) -> Any:
        return run(op.bodies[0], [*of_cond, *state], Editor(), wide)[0]

    def body(state: list[Any]) -> list[Any]:
        editor.begin()
        outs = run(op.bodies[1], [*of_body, *state], editor, wide)
        editor.end()
        return outs

    return list(jax.lax.while_loop(test, body, [jnp.asarray(v) for v in operands[first + second :]]))


def _cond(op: Op, operands: list[Any], editor: Editor, wide: bool) -> list[Any]:
    def branch(scope: Scope) -> Callable[..., list[Any]]:
        def body(*args: Any) -> list[Any]:
            editor.begin()
            outs = run(scope, list(args), editor, wide)
            editor.end()
            return outs

        return body

    index = jnp.asarray(operands[0]).astype(np.int32)
    return list(jax.lax.switch(index, [branch(scope) for scope in op.bodies], *operands[1:]))


RUN: dict[str, Callable[..., list[Any]]] = {
    "plain": _plain,
    "rule": _rule,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
