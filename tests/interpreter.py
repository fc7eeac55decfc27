"""A traced program run by NumPy, one operation after another, in the dtypes that it was traced in.

The oracle of the harness: autodiff's own program, but no compiler, no fusion and no kernel of the library
that is being tested. It also costs no compilation, which is where a proof spends its time. An operation
that is not in the table (gathers, scatters, random bits) is handed to JAX, un-jitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from scipy import special

from jaxbp import jaxprs


def interpret(fn: Callable[..., Any], *like: Any) -> Callable[..., Any]:
    """`fn` as traced on arguments like these, run by NumPy."""
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*like)
    structure = jax.tree.structure(shapes)

    def call(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            flat = run(*jaxprs.opened(program), jax.tree.leaves(args))
        return jax.tree.unflatten(structure, flat)

    return call


def run(program: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr."""
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, core.Literal) else values[atom]

    values |= zip(program.constvars, map(_array, consts), strict=True)
    values |= zip(program.invars, map(_array, args), strict=True)
    for equation in program.eqns:
        outputs = _evaluate(equation, list(map(read, equation.invars)))
        values |= zip(equation.outvars, outputs, strict=True)
    return list(map(read, program.outvars))


def _evaluate(equation: Any, inputs: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(equation, inputs)
    if name == "cond":
        return run(*jaxprs.opened(params["branches"][int(inputs[0])]), inputs[1:])
    inner = jaxprs.called(equation)
    if inner is not None:
        return run(*jaxprs.opened(inner), inputs)
    rule = TABLE.get(name)
    if rule is None or any(jnp.issubdtype(v.dtype, jax.dtypes.prng_key) for v in inputs):
        result = equation.primitive.bind(*map(jnp.asarray, inputs), **params)
    else:
        result = rule(*inputs, **params)
    results = result if equation.primitive.multiple_results else [result]
    return [_array(r) for r in results]


def _array(value: Any) -> Any:
    """A NumPy array, except for keys, which only JAX can read."""
    keys = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return value if keys else np.asarray(value)


def _scan(equation: Any, inputs: list[Any]) -> list[Any]:
    loop = jaxprs.loop_of(equation)
    fixed, carry, sequences = loop.divide(inputs)
    turns = []
    for t in loop.turns():
        out = run(*jaxprs.opened(loop.body), [*fixed, *carry, *(x[t] for x in sequences)])
        carry = out[: loop.carry]
        turns.append(out[loop.carry :])
    if not turns:
        return [*carry, *(np.zeros(v.aval.shape, v.aval.dtype) for v in equation.outvars[loop.carry :])]
    turns = turns[::-1] if loop.reverse else turns
    return [*carry, *(np.stack(steps) for steps in zip(*turns, strict=True))]


def _pad(x: Any, value: Any, padding_config: Any, **_: Any) -> Any:
    for axis, (low, high, interior) in enumerate(padding_config):
        x = np.moveaxis(x, axis, 0)
        size = len(x) + max(len(x) - 1, 0) * interior
        wide = np.full((max(low, 0) + size + max(high, 0), *x.shape[1:]), value, x.dtype)
        wide[max(low, 0) : max(low, 0) + size : interior + 1] = x
        x = np.moveaxis(wide[max(-low, 0) : len(wide) - max(-high, 0)], 0, axis)
    return x


def _convolve(
    x: Any,
    w: Any,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> Any:
    """Sums written out tap by tap, block by block."""
    x, w = np.transpose(x, dimension_numbers.lhs_spec), np.transpose(w, dimension_numbers.rhs_spec)
    around = [(low, high, d - 1) for (low, high), d in zip(padding, lhs_dilation, strict=True)]
    x = _pad(x, 0, [(0, 0, 0), (0, 0, 0), *around])
    groups = max(feature_group_count, batch_group_count)
    blocks = np.split(x, groups, axis=1 if feature_group_count > 1 else 0)
    parts = [
        _taps(block, part, window_strides, rhs_dilation)
        for block, part in zip(blocks, np.split(w, groups, axis=0), strict=True)
    ]
    return np.transpose(np.concatenate(parts, axis=1), np.argsort(dimension_numbers.out_spec))


def _taps(x: Any, w: Any, strides: Any, dilation: Any) -> Any:
    """`[n, c, *in], [f, c, *taps] -> [n, f, *out]`."""
    sizes = list(zip(x.shape[2:], w.shape[2:], strides, dilation, strict=True))
    count = [max((size - d * (taps - 1) - 1) // s + 1, 0) for size, taps, s, d in sizes]
    y = np.zeros((x.shape[0], w.shape[0], *count), x.dtype)
    for tap in product(*map(range, w.shape[2:])):
        axes = zip(tap, count, strides, dilation, strict=True)
        seen = x[(..., *(slice(d * k, d * k + s * n, s) for k, n, s, d in axes))]
        seen = seen[(..., *map(slice, count))]
        y += np.moveaxis(np.tensordot(w[(..., *tap)], seen, ((1,), (1,))), 0, 1)
    return y


def _dot(a: Any, b: Any, dimension_numbers: Any, preferred_element_type: Any = None, **_: Any) -> Any:
    (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
    free_a = [i for i in range(a.ndim) if i not in {*contract_a, *batch_a}]
    free_b = [i for i in range(b.ndim) if i not in {*contract_b, *batch_b}]
    batch, inner = [a.shape[i] for i in batch_a], [a.shape[i] for i in contract_a]
    outer = [a.shape[i] for i in free_a], [b.shape[i] for i in free_b]
    left = np.transpose(a, [*batch_a, *free_a, *contract_a])
    right = np.transpose(b, [*batch_b, *contract_b, *free_b])
    rows, columns, many = (int(np.prod(n)) for n in (*outer, inner))
    y = left.reshape(*batch, rows, many) @ right.reshape(*batch, many, columns)
    return y.reshape((*batch, *outer[0], *outer[1])).astype(preferred_element_type or y.dtype)


def _broadcast(x: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
    spread = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(spread), shape)


def _iota(dtype: Any, shape: Any, dimension: int, **_: Any) -> Any:
    column = [-1 if axis == dimension else 1 for axis in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(column), shape)


def _slice(x: Any, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    steps = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the arrays alone."""
    return lambda *inputs, **_: fn(*inputs)


# fmt: off
TABLE: dict[str, Callable[..., Any]] = {
    **{name: _plain(fn) for name, fn in {
        "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and, "copy": np.copy,
        "cos": np.cos, "div": np.divide, "eq": np.equal, "erf": special.erf, "erfc": special.erfc,
        "exp": np.exp, "expm1": np.expm1, "ge": np.greater_equal, "gt": np.greater,
        "is_finite": np.isfinite, "le": np.less_equal, "log": np.log, "log1p": np.log1p,
        "logistic": special.expit, "lt": np.less, "max": np.maximum, "min": np.minimum,
        "mul": np.multiply, "ne": np.not_equal, "neg": np.negative, "not": np.invert,
        "or": np.bitwise_or, "pow": np.power, "rsqrt": lambda x: 1 / np.sqrt(x), "sign": np.sign,
        "sin": np.sin, "sqrt": np.sqrt, "square": np.square, "stop_gradient": np.copy,
        "sub": np.subtract, "tanh": np.tanh,
        "select_n": lambda which, *cases: np.choose(which, cases, mode="clip"),
    }.items()},
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, axis=dimension),
    "conv_general_dilated": _convolve,
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "dot_general": _dot,
    "integer_pow": lambda x, y, **_: x ** y,
    "iota": _iota,
    "pad": _pad,
    "reduce_max": lambda x, axes, **_: np.max(x, axis=tuple(axes)),
    "reduce_sum": lambda x, axes, **_: np.sum(x, axis=tuple(axes)),
    "reshape": lambda x, *_, new_sizes, dimensions=None, **__:
        (x if dimensions is None else np.transpose(x, dimensions)).reshape(new_sizes),
    "rev": lambda x, dimensions: np.flip(x, axis=dimensions),
    "slice": _slice,
    "split": lambda x, sizes, axis, **_: np.split(x, np.cumsum(sizes)[:-1], axis=axis),
    "squeeze": lambda x, dimensions: np.squeeze(x, axis=tuple(dimensions)),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
}
# fmt: on
