"""One operation on NumPy arrays in float64, for programs that are run thousands of times on little data.

Nothing is compiled. What is not in the tables is run by JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.check.evaluate import RUN
from jaxbp.check.operations import Editor, Op
from jaxbp.check.oracle import float64

Params = dict[str, Any]


def _select(which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)


PLAIN: dict[str, Callable[..., Any]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "pow": np.power, "exp": np.exp, "exp2": np.exp2,
    "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh, "sqrt": np.sqrt, "cbrt": np.cbrt,
    "square": np.square, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert,
    "is_finite": np.isfinite, "copy": np.asarray, "copy_p": np.asarray, "stop_gradient": np.asarray,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "clamp": lambda low, x, high: np.clip(x, low, high), "select_n": _select,
}  # fmt: skip


def _divide(x: Any, y: Any) -> Any:
    whole = np.issubdtype(np.asarray(x).dtype, np.integer)
    return np.trunc(np.true_divide(x, y)).astype(np.asarray(x).dtype) if whole else np.divide(x, y)


def _dot(p: Params, x: Any, y: Any) -> Any:
    (cx, cy), (bx, by) = p["dimension_numbers"]
    fx = [a for a in range(x.ndim) if a not in (*cx, *bx)]
    fy = [a for a in range(y.ndim) if a not in (*cy, *by)]
    left, right = x.transpose(*bx, *fx, *cx), y.transpose(*by, *cy, *fy)
    batch, inner = [x.shape[a] for a in bx], int(np.prod([x.shape[a] for a in cx]))
    made = left.reshape(*batch, -1, inner) @ right.reshape(*batch, inner, -1)
    return made.reshape(*batch, *(x.shape[a] for a in fx), *(y.shape[a] for a in fy))


def _spread(p: Params, x: Any) -> Any:
    shape = [1] * len(p["shape"])
    for k, a in enumerate(p["broadcast_dimensions"]):
        shape[a] = np.shape(x)[k]
    return np.broadcast_to(np.reshape(x, shape), p["shape"])


def _iota(p: Params) -> Any:
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    return np.broadcast_to(
        np.arange(p["shape"][p["dimension"]], dtype=p["dtype"]).reshape(shape), p["shape"]
    )


def _slice(p: Params, x: Any) -> Any:
    steps = p["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], steps))]


def _pad(p: Params, x: Any, value: Any) -> Any:
    """Entries put apart, and edges added or, where negative, cut off."""
    wide, inside, kept = [], [], []
    for n, (low, high, step) in zip(x.shape, p["padding_config"], strict=True):
        size, start = n + max(n - 1, 0) * step, max(low, 0)
        wide.append(start + size + max(high, 0))
        inside.append(slice(start, start + size, step + 1))
        kept.append(slice(max(-low, 0), wide[-1] - max(-high, 0)))
    made = np.full(wide, value, x.dtype)
    made[tuple(inside)] = x
    return made[tuple(kept)]


def _running(p: Params, x: Any) -> Any:
    flip = (lambda v: np.flip(v, p["axis"])) if p["reverse"] else np.asarray
    return flip(np.cumsum(flip(x), p["axis"]))


def _converted(p: Params, x: Any) -> Any:
    dtype = np.dtype(p["new_dtype"]) if not jnp.issubdtype(p["new_dtype"], jnp.floating) else np.float64
    return np.asarray(x).astype(np.complex128 if np.issubdtype(dtype, np.complexfloating) else dtype)


WITH_PARAMETERS: dict[str, Callable[..., Any]] = {
    "dot_general": _dot, "broadcast_in_dim": _spread, "iota": _iota, "slice": _slice, "pad": _pad,
    "cumsum": _running, "convert_element_type": _converted,
    "integer_pow": lambda p, x: np.asarray(x) ** float(p["y"]),
    "reshape": lambda p, x: np.reshape(x, p["new_sizes"]),
    "transpose": lambda p, x: np.transpose(x, p["permutation"]),
    "squeeze": lambda p, x: np.squeeze(x, tuple(p["dimensions"])),
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "concatenate": lambda p, *x: np.concatenate(x, p["dimension"]),
    "reduce_sum": lambda p, x: np.sum(x, tuple(p["axes"])),
    "reduce_max": lambda p, x: np.max(x, tuple(p["axes"])),
    "reduce_min": lambda p, x: np.min(x, tuple(p["axes"])),
    "reduce_prod": lambda p, x: np.prod(x, tuple(p["axes"])),
    "reduce_precision": lambda p, x: x,
    "div": lambda p, x, y: _divide(x, y),
}  # fmt: skip


def apply(op: Op, operands: list[Any]) -> list[Any]:
    """The results of an operation."""
    name = op.primitive.name
    if op.kind == "plain" and name in WITH_PARAMETERS:
        return [WITH_PARAMETERS[name](op.params, *operands)]
    if op.kind == "plain" and name in PLAIN:
        return [PLAIN[name](*operands)]
    with float64():
        made = RUN[op.kind](op, [jnp.asarray(v) for v in operands], Editor(), True)
        return [np.asarray(v) for v in jax.device_get(made)]
