"""Text from a network, one token after another, each computed once.

A network is turned into a step by its parts. Layers that look at other places of a sequence write two
methods of their own, `start(params, batch, length, dtype) -> cache` and `advance(params, cache, x) ->
(y, cache)` (`Attention` keeps keys and values, recurrent layers their state, positions a count);
every other leaf sees one place at a time anyway and is simply called. The combinators are walked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxbp.compose import MERGES, Branch, Chain, Residual, Stack
from jaxbp.layer import InputError, Layer, Part, PyTree, composed, is_leaf, require_whole
from jaxbp.recompute import Recompute

COLDEST = float(jnp.finfo(jnp.float32).tiny)  # float32 divides by no smaller number


def start(layer: Layer, params: PyTree, batch: int, length: int, dtype: Any) -> PyTree:
    """An empty cache for `batch` sequences of up to `length` tokens."""
    if isinstance(layer, Chain | Branch | Residual | Recompute | Stack):

        def empty(part: Part) -> PyTree:
            fresh = partial(start, part.layer, batch=batch, length=length, dtype=dtype)
            return (jax.vmap(fresh) if part.copies else fresh)(part.params)

        return tuple(map(empty, layer.parts(params)))
    if not is_leaf(layer):
        raise InputError(f"{type(layer).__name__}: does not know how to go on token by token")
    own = getattr(layer, "start", None)
    return own(params, batch, length, dtype) if own else ()


def advance(layer: Layer, params: PyTree, cache: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
    """`(y, cache)` for the next places `x` of every sequence: what `layer` returns there."""
    parts = list(zip(layer.parts(params), cache, strict=True)) if composed(layer) else []
    if isinstance(layer, Chain):
        caches = []
        for part, c in parts:
            x, new = advance(part.layer, part.params, c, x)
            caches.append(new)
        return x, tuple(caches)
    if isinstance(layer, Stack):

        def step(h: PyTree, copy: Any) -> tuple[PyTree, PyTree]:
            p, c = copy
            return advance(layer.body, p, c, h)

        x, cache = jax.lax.scan(step, x, (params, cache[0]))
        return x, (cache,)
    if isinstance(layer, Recompute):
        ((part, c),) = parts
        y, new = advance(part.layer, part.params, c, x)
        return y, (new,)
    if isinstance(layer, Branch | Residual):
        ends = (advance(part.layer, part.params, c, x) for part, c in parts)
        ys, caches = zip(*ends, strict=True)
        join = MERGES[layer.merge if isinstance(layer, Branch) else "sum"].join
        return join(ys if isinstance(layer, Branch) else (x, *ys))[0], caches
    own = getattr(layer, "advance", None)
    return own(params, cache, x) if own else (layer(params, x), cache)


def make_generator(
    net: Layer, length: int, temperature: float | int = 1.0, top: int | None = None
) -> Callable[..., Array]:
    """`generate(params, prompt, key) -> ids`, compiled: `[batch, n]` continued to `[batch, length]`.

    Tokens are drawn from `softmax(logits / temperature)`, among the `top` likeliest if given;
    `temperature=0` takes the likeliest, as does one below the smallest normal float32 number. The
    prompt runs through the network at once and fills the cache; after that, every token costs one step
    of a loop. Raises `InputError` for an empty prompt, one that leaves no room, a temperature that is
    negative or not finite, and layers that need the whole sequence.
    """
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise InputError(f"temperature: expected a finite number, at least 0, got {temperature!r}")
    if top is not None:
        require_whole("make_generator", top=top)

    @jax.jit
    def generate(params: PyTree, prompt: Array, key: Any) -> Array:
        batch, given = prompt.shape
        if not 0 < given < length:
            raise InputError(f"prompt: expected 1 … {length - 1} tokens, got {given}")
        dtype = jax.tree.leaves(params)[0].dtype
        logits, cache = advance(net, params, start(net, params, batch, length, dtype), prompt)
        draw = partial(_draw, temperature=temperature, top=top)

        def step(state: Any, k: Any) -> tuple[Any, Array]:
            cache, token = state
            logits, cache = advance(net, params, cache, token[:, None])
            token = draw(logits[:, -1], k).astype(prompt.dtype)
            return (cache, token), token

        keys = jax.random.split(key, length - given)
        first = draw(logits[:, -1], keys[0]).astype(prompt.dtype)
        _, rest = jax.lax.scan(step, (cache, first), keys[1:])
        return jnp.concatenate([prompt, first[:, None], rest.T], axis=1)

    return generate


def _draw(logits: Array, key: Any, temperature: float | int, top: int | None) -> Array:
    if top is not None and top < logits.shape[-1]:
        least = jax.lax.top_k(logits, top)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if temperature < COLDEST:
        return jnp.argmax(logits, axis=-1)
    # Less the largest, which changes no probability: a quotient that overflows is then -inf, whose is 0.
    logits = logits.astype(jnp.float32)
    return jax.random.categorical(key, (logits - logits.max(axis=-1, keepdims=True)) / temperature)
