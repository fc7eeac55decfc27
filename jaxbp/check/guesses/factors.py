"""The named values of a coupled stretch: what a derivation on paper is written in (`p`, `x̂`, `1/σ`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxbp.check.edits.sites import Sites
from jaxbp.check.guesses import regions
from jaxbp.check.guesses.regions import Region
from jaxbp.check.guesses.stretches import Values
from jaxbp.check.operations import Constant

MOST = 14
Factor = Callable[[Values], np.ndarray]


def factors(sites: Sites, region: Region, known: Values) -> Iterator[tuple[str, Factor, str]]:
    """`(name, value, cause if it is lost)`: the stretch's own values, and those its result meets."""
    lead = np.shape(known[region.start])[: region.depth]
    full, kept = (*lead, *region.shape), (*lead, *region.kept)
    numbers = [region.start, *(o for op in region.ops for o in op.outputs)]
    result = region.end.outputs[0]
    meets = [op for op in region.scope.ops if result in op.inputs and op.primitive.name in ("mul", "div")]
    numbers += [v for op in meets for v in op.inputs if isinstance(v, int) and v != result]
    beside = [v for op in region.ops for v in op.inputs if isinstance(v, int) and v not in sites.live]
    makers = [sites.producer[v] for v in beside if v in sites.producer]
    numbers = [*beside, *(v for op in makers for v in op.inputs if isinstance(v, int)), *numbers]
    seen: list[np.ndarray] = []
    for v in dict.fromkeys(numbers[::-1]):
        value = np.asarray(known[v]) if v in known else None
        if value is None or value.dtype.kind != "f" or len(seen) >= MOST:
            continue
        shape = full if value.shape == full else kept if value.size == int(np.prod(kept)) else None
        if shape is None or any(_same(value.reshape(shape), s) for s in seen):
            continue
        seen.append(value.reshape(shape))
        cause = lost(value, of_array="scale")
        yield _name(sites, v), lambda env, v=v, s=shape: env[v].reshape(s), cause
        if name_of_count := _count(sites, region, v, shape == kept):
            n = int(np.prod([region.shape[a] for a in region.axes]))
            words = f"{name_of_count} over the number of all entries"
            yield words, lambda env, v=v, s=shape, n=n: env[v].reshape(s) / n, "scale"
    u = exponent(region, known)
    if u is not None and np.shape(known[u]) == full:
        yield f"the exponential of {_name(sites, u)}", lambda env: exponential(env[u]), "scale"
    if {"exp", "log"} <= {op.primitive.name for op in region.ops} and not region.reduced:
        of_result = lambda env: np.exp(env[result].reshape(full))  # noqa: E731
        yield "the exponential of its result", of_result, "wrong-activation"


def lost(value: Any, of_array: str = "missing-path") -> str:
    """The cause where a factor of this value is left out: a mask, signs, a number, or an array."""
    value = np.asarray(value)
    sizes = np.unique(np.abs(value))
    if len(sizes) == 2 and sizes[0] == 0 and len(np.unique(value)) == 2:
        return "missing-rows"
    if value.size == 1 and sizes[0] in (0, 1):
        return "missing-rows"  # a mask, one entry at a time
    if value.size > 1 and len(sizes) == 1 and np.ptp(value) > 0:
        return "sign"
    return "scale" if len(np.unique(value)) < 2 else of_array


def _count(sites: Sites, region: Region, v: int, reduced: bool) -> str:
    """The name of a value that may count entries: one for each sum, that no argument changes."""
    return _name(sites, v) if reduced and v not in sites.live else ""


def exponent(region: Region, known: Values) -> int | None:
    """What a softmax in the stretch is of: what goes into `exp`, before anything is subtracted."""
    for op in region.ops:
        if op.primitive.name in ("exp", "exp2"):
            v = op.inputs[0]
            maker = next((o for o in region.ops if v in o.outputs), None)
            if maker is not None and maker.primitive.name == "sub" and maker.inputs[0] in known:
                return maker.inputs[0]
            return v if isinstance(v, int) and v in known else None
    return None


def terms(
    sites: Sites, v: Any, known: Values, depth: int, sign: float = 1.0, steps: int = 5
) -> Iterator[tuple[int, float]]:
    """`(value, sign)` of every term of a sum, those of its partial sums too; they spread to its shape."""
    op = sites.producer.get(v) if isinstance(v, int) else None
    if op is None or steps == 0:
        return
    if op.primitive.name == "broadcast_in_dim" and not depth:
        kept, rank = op.params["broadcast_dimensions"], len(op.out_avals[0].shape)
        if tuple(kept) == tuple(range(rank - len(kept), rank)):
            yield from terms(sites, op.inputs[0], known, depth, sign, steps - 1)
    for k, u in enumerate(op.inputs) if op.primitive.name in ("add", "sub") else ():
        own = -sign if op.primitive.name == "sub" and k == 1 else sign
        if isinstance(u, int) and u in known:
            yield u, own
            yield from terms(sites, u, known, depth, own, steps - 1)


def softmax(v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    e = np.exp(v - np.max(v, axis=axes, keepdims=True))
    return np.asarray(e / np.sum(e, axis=axes, keepdims=True))


def exponential(u: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(u, 300.0))


def even(v: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Whether a value is the same all along the axes."""
    return bool(np.all(np.ptp(v, axis=axes) <= regions.EXACT * np.max(np.abs(v), initial=0.0)))


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-12, atol=0))


def _name(sites: Sites, v: Any) -> str:
    op = sites.producer.get(v)
    while op is not None and op.primitive.name in ("broadcast_in_dim", "reshape", "convert_element_type"):
        if isinstance(op.inputs[0], Constant):
            break
        v = op.inputs[0]
        op = sites.producer.get(v)
    return sites.describe(v)
