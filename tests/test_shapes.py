"""Shapes that nobody thought of, drawn by Hypothesis: the two passes against autodiff of the forward."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxbp import (
    GRU,
    LSTM,
    RNN,
    Attention,
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    GlobalAvgPool,
    GroupNorm,
    InputError,
    LayerNorm,
    MaxPool,
    RMSNorm,
)
from tests.proof import Case, normal, prove_traced

few = settings(deadline=None, max_examples=20, derandomize=True, phases=[Phase.generate])
small = st.integers(1, 4)
batches = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def prove(layer: Any, x: Any, **fields: Any) -> None:
    """Unless the layer says that it does not take such an input."""
    like = jax.ShapeDtypeStruct(x, "float32") if isinstance(x, tuple) else x(0, "float32")
    try:
        jax.eval_shape(lambda key, v: layer(layer.init(key, v), v), jax.random.key(0), like)
    except InputError:
        return
    prove_traced(Case(layer, x, modes=("jit",), **fields))


def per_axis(axes: int, least: int, most: int) -> Any:
    return st.tuples(*[st.integers(least, most)] * axes)


@st.composite
def windows(draw: Any, least_padding: int = -1) -> tuple[int, Any, dict[str, Any], tuple[int, ...]]:
    """`(axes, taps, {stride, padding}, input sizes)`."""
    axes = draw(st.integers(1, 2))
    pair = st.tuples(st.integers(least_padding, 2), st.integers(least_padding, 2))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(*[pair] * axes)))
    fields = {"stride": draw(per_axis(axes, 1, 4)), "padding": padding}
    return axes, draw(per_axis(axes, 1, 3)), fields, draw(per_axis(axes, 1, 7))


@given(data=st.data(), win=windows(), kind=st.sampled_from([Conv, ConvTranspose]), bias=st.booleans())
@few
def test_convolutions(data, win, kind, bias) -> None:
    axes, taps, fields, size = win
    groups, channels, features = data.draw(st.integers(1, 3)), data.draw(small), data.draw(small)
    dilation, batch = data.draw(per_axis(axes, 1, 3)), data.draw(batches)
    layer = kind(groups * features, taps, **fields, dilation=dilation, groups=groups, bias=bias)
    prove(layer, (*batch, *size, groups * channels))


@given(win=windows(0), kind=st.sampled_from([MaxPool, AvgPool]), batch=batches, channels=small)
@few
def test_pooling(win, kind, batch, channels) -> None:
    _, taps, fields, size = win
    try:
        layer = kind(taps, **fields)
    except InputError:  # padding as large as the window
        return
    prove(layer, (*batch, *size, channels))


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    groups=small,
    train=st.booleans(),
)
@few
def test_norms(shape, groups, train) -> None:
    pool = [GlobalAvgPool()] if len(shape) > 1 else []
    for layer in (LayerNorm(), RMSNorm(), GroupNorm(groups), *pool):
        # a single entry: x̂ is 0, or ±1, and the error that passes is zero but for ε
        prove(layer, shape, saturated=True)
    if train:
        prove(BatchNorm(), shape, train=True, saturated=True)


@given(batch=batches, inputs=small, features=small, bias=st.booleans())
@few
def test_dense(batch, inputs, features, bias) -> None:
    prove(Dense(features, bias), (*batch, inputs))


@given(
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    size=st.integers(1, 4),
    queries=small,
    keys=st.integers(1, 5),
    batch=batches,
    window=st.one_of(st.none(), small),
    flags=st.tuples(*[st.booleans()] * 4),
    form=st.sampled_from(["self", "cross", "padding", "pairs"]),
)
@few
def test_attention(kv_heads, group, size, queries, keys, batch, window, flags, form) -> None:
    causal, rotary, bias, sliding = flags
    layer = Attention(
        kv_heads * group,
        causal=causal,
        kv_heads=kv_heads,
        window=window if sliding else None,
        rotary=rotary,
        bias=bias,
        head_features=size,
    )

    def x(key: int, dtype: Any) -> Any:
        query = normal(key, (*batch, queries, 3), dtype)
        memory = normal(key + 1, (*batch, keys, 2), dtype)
        shape = (*batch, *([queries] if form == "pairs" else []), keys)
        mask = jax.numpy.asarray(np.random.default_rng(key).integers(0, 3, shape) > 0)
        parts = {"x": query, "memory": memory, "mask": mask}
        return {"self": query, "cross": (query, memory)}.get(form, parts)

    # with one key to see, its share is 1 whatever its score, and no error comes back through it
    prove(layer, x, saturated=True)


@given(
    cell=st.sampled_from([RNN, LSTM, GRU]),
    features=small,
    inputs=small,
    time=st.integers(1, 5),
    batch=batches,
    unroll=st.integers(1, 3),
    flags=st.tuples(*[st.booleans()] * 4),
)
@few
def test_recurrence(cell, features, inputs, time, batch, unroll, flags) -> None:
    reverse, return_state, masked, started = flags

    def x(key: int, dtype: Any) -> Any:
        parts: dict[str, Any] = {"x": normal(key, (*batch, time, inputs), dtype)}
        if masked:
            draw = np.random.default_rng(key).integers(0, 3, (*batch, time)) > 0
            parts["mask"] = jax.numpy.asarray(draw)
        if started:
            states = [normal(key + i, (*batch, features), dtype) for i in range(cell.states)]
            parts["state"] = tuple(states) if cell.states > 1 else states[0]
        return parts if masked or started else parts["x"]

    prove(cell(features, reverse, return_state, unroll=unroll), x)
