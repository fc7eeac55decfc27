"""Factors of a factor: a product of several values, with one of them forgotten.

`γ·(1 - done)·G` is differentiated in `G` with the value `γ·(1 - done)`, and who forgets the mask there
writes `γ`. Such a value is taken apart along its products and quotients, and computed without one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxbp.check.edits.sites import Sites
from jaxbp.check.guesses.factors import lost, softmax
from jaxbp.check.operations import Constant, Op

Values = dict[int, Any]
DEPTH = 5  # operations that are looked through
MOST = 6  # parts of one value
SPREAD = ("broadcast_in_dim", "reshape", "squeeze", "neg", "convert_element_type", "transpose")


def without(
    sites: Sites, v: Any, known: Values, depth: int
) -> Iterator[tuple[str, str, Callable[[Values], np.ndarray]]]:
    """`(part in words, cause, the value without it)` for every part of a product.

    `depth` loops are around, whose turns stand in front of the axes of the recorded values.
    """
    for part in _parts(sites, v, known, DEPTH)[:MOST]:
        name = f"the number {float(part.value):g}" if isinstance(part, Constant) else sites.describe(part)
        cause = lost(known[part], "wrong-point") if isinstance(part, int) else "scale"
        yield name, cause, lambda env, p=part: _value(sites, v, env, p, depth)


def factors_of(sites: Sites, v: Any, known: Values) -> list[Any]:
    """The values and numbers that a value is the product or quotient of; none where it is neither."""
    return _parts(sites, v, known, DEPTH)


def _parts(sites: Sites, v: Any, known: Values, steps: int) -> list[Any]:
    """The factors and divisors that a value is made of; none where it is no product."""
    op = sites.producer.get(v) if isinstance(v, int) else None
    if op is None or steps == 0 or v not in known:
        return []
    if op.primitive.name in SPREAD:
        return _parts(sites, op.inputs[0], known, steps - 1)
    if op.primitive.name not in ("mul", "div"):
        return []
    found = []
    for u in op.inputs:
        if isinstance(u, int) and u in known:
            found += _parts(sites, u, known, steps - 1) or [u]
        elif isinstance(u, Constant) and np.size(u.value) == 1:
            found.append(u)
    return [u for u in found if not (isinstance(u, Constant) and float(np.ravel(u.value)[0]) in (1, -1))]


def _value(sites: Sites, v: Any, env: Values, left_out: Any, depth: int) -> np.ndarray:
    """The value computed with 1 in the place of one part."""
    if v is left_out or (isinstance(v, int) and v == left_out):
        return np.ones(np.shape(env[v])) if isinstance(v, int) else np.ones(())
    op = sites.producer.get(v) if isinstance(v, int) else None
    if isinstance(v, Constant):
        return np.asarray(v.value, np.float64)
    if op is None or op.primitive.name not in (*SPREAD, "mul", "div"):
        return np.asarray(env[v])
    if op.primitive.name in SPREAD:
        return _moved(op, _value(sites, op.inputs[0], env, left_out, depth), np.shape(env[v]), depth)
    a, b = (_value(sites, u, env, left_out, depth) for u in op.inputs)
    return np.asarray(a * b if op.primitive.name == "mul" else a / b)


def _moved(op: Op, value: np.ndarray, shape: tuple[int, ...], depth: int) -> np.ndarray:
    """What the operation makes of a value, with the turns of the loops in front of its axes."""
    if op.primitive.name == "neg":
        return np.asarray(-value)
    if op.primitive.name == "convert_element_type":
        return value
    if value.ndim < depth:
        value = np.broadcast_to(value, shape[:depth])
    if op.primitive.name == "transpose":
        return np.transpose(value, [*range(depth), *(depth + a for a in op.params["permutation"])])
    if op.primitive.name == "broadcast_in_dim":
        kept = [depth + a for a in op.params["broadcast_dimensions"]]
        inner = iter(value.shape[depth:])
        stretched = [n if a < depth else next(inner) if a in kept else 1 for a, n in enumerate(shape)]
        return np.broadcast_to(value.reshape(stretched), shape)
    return value.reshape(shape)


def other_softmaxes(
    sites: Sites, v: Any, known: Values, depth: int
) -> Iterator[tuple[str, Callable[[Values], np.ndarray]]]:
    """Where a value is a softmax: the softmax of the same logits along its other axes."""
    quotient = sites.producer.get(v) if isinstance(v, int) else None
    if quotient is None or quotient.primitive.name != "div":
        return
    power = sites.producer.get(quotient.inputs[0])
    shifted = sites.producer.get(power.inputs[0]) if power is not None else None
    if power is None or power.primitive.name != "exp" or shifted is None:
        return
    u = shifted.inputs[0] if shifted.primitive.name == "sub" else power.inputs[0]
    shape = sites.shape.get(v, ())
    if u not in known or tuple(sites.shape[u]) != tuple(shape):
        return
    for axis, size in enumerate(shape):
        if size > 1:
            yield f"the softmax along axis {axis}", lambda env, a=depth + axis: softmax(env[u], (a,))
