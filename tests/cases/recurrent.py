import jax
import jax.numpy as jnp

from jaxbp import GRU, LSTM, RNN, Branch, Chain, Stack
from tests.proof import Case, normal

JIT = ("jit",)  # eager and vmap are proven on the cases without it: every mode compiles anew
MAPPED = ("jit", "vmap")
HIDES = jnp.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)  # the end, everything, the start


def masked(key, dtype):
    return {"x": normal(key, (3, 3, 4), dtype), "mask": HIDES}


def states(cell, key, dtype, batch=3):
    parts = tuple(normal(key + i, (batch, 5), dtype) for i in (100, 200))
    return parts if cell is LSTM else parts[0]


def inputs(cell, **others):
    """A function of a name that tells its cases apart."""

    def with_state(key, dtype):
        return {"x": normal(key, (3, 3, 4), dtype), "state": states(cell, key, dtype), **others}

    return with_state


def small(layer):
    """Input weights of 1e-4: inputs of 1e4 would saturate every gate, and prove 0 = 0."""

    def params(key, dtype):
        made = layer.init(jax.random.key(key), normal(key, (2, 3, 4), dtype))
        made = {name: p + normal(key + 1, p.shape, dtype, 0.3) for name, p in made.items()}
        return {**made, "w_x": made["w_x"] * 1e-4}

    return params


CASES = [
    case
    for cell in (RNN, LSTM, GRU)
    for case in (
        Case(cell(5), (2, 3, 4), depth=4),
        Case(cell(5), (1, 3, 4), depth=4, modes=JIT, note="batch-1"),
        Case(cell(5), (2, 1, 4), depth=4, modes=JIT, note="length-1"),
        Case(cell(5), (3, 4), depth=4, modes=JIT, note="no-batch"),
        Case(cell(1), (2, 3, 1), depth=4, modes=JIT, note="one-feature"),
        Case(cell(5), (2, 2, 3, 4), depth=4, modes=JIT, note="two-batch-axes"),
        Case(cell(5), (2, 3, 4), depth=4, modes=JIT, scale=1e-4),
        Case(cell(5), (2, 3, 4), depth=4, modes=JIT, scale=1e4, params=small(cell(5))),
        Case(cell(5), (2, 9, 4), depth=8, modes=JIT, note="longer"),
        Case(cell(5), masked, depth=4, modes=JIT),
        Case(cell(5, reverse=True), masked, depth=4, modes=JIT),
        Case(cell(5, return_state=True), inputs(cell), depth=4, modes=JIT),
        Case(
            cell(5, reverse=True, return_state=True),
            inputs(cell, mask=HIDES),
            depth=4,
            modes=MAPPED,
            note="masked",
        ),
    )
]
CASES += [
    Case(Branch(LSTM(2), LSTM(2, reverse=True), merge="concat"), masked, depth=5, modes=JIT),
    Case(LSTM(5, unroll=2), (2, 3, 4), depth=4, modes=JIT),
    Case(Chain(GRU(4), RNN(3)), (2, 3, 4), depth=8, modes=JIT),
    *(Case(Stack(cell(4), 2), (2, 3, 4), depth=8, modes=JIT) for cell in (RNN, LSTM, GRU)),
]
