import jax.numpy as jnp

from jaxbp import GELU, Auto, Branch, Chain, Dense, Dropout, ReLU, Residual, Sigmoid, Softmax, Stack, Tanh
from tests.proof import Case, further


def scaled_sine(params, x):
    return jnp.sin(params["rate"] * x) + jnp.broadcast_to(params["shift"], x.shape)


def sine(params, x):
    return jnp.sin(x)


def make_sine(key, x):
    return {"rate": jnp.asarray(1.5, x.dtype), "shift": jnp.zeros(x.shape[-1], x.dtype)}


def block(width):
    return Residual(Chain(Dense(width), Tanh()))


BLOCK, MERGED = Chain(Dense(3), Tanh()), Branch(Dense(5), Tanh(), Dense(2), merge="concat")

CASES = [
    Case(Chain(Dense(5), Sigmoid(), Dense(2), Softmax()), (4, 3), depth=4),
    Case(Residual(BLOCK), (4, 3), depth=3),
    Case(Branch(Dense(5), Chain(Dense(2), Dense(5))), (4, 3), depth=3),
    Case(Stack(block(3), 4), (2, 3), depth=9),
    Case(Stack(Chain(Dense(3), Dropout(0.4)), 3), (4, 3), train=True, depth=6),
    Case(Auto(scaled_sine, make_sine), (4, 3), depth=2),
    *further(
        Case(Chain(Dense(5), ReLU(), Dense(2)), (1, 3), depth=3),
        Case(Chain(Dense(5), GELU(), Dropout(0.4), Dense(2)), (4, 3), train=True, depth=4),
        Case(Chain(Chain(Dense(4)), Chain(Tanh(), Chain(Dense(2)))), (2, 4, 3), depth=3),
        Case(Chain(Branch(Dropout(0.5), Tanh(), merge="concat"), Dense(2)), (4, 3), train=True, depth=3),
        Case(Chain(Dense(4), Stack(block(4), 2), Branch(Stack(block(4), 2), Dense(4))), (2, 3), depth=9),
        *(Case(Residual(BLOCK), (4, 3), depth=3, scale=scale) for scale in (1e-4, 1e4)),
        *(Case(Residual(BLOCK), shape, depth=3) for shape in [(3,), (1, 3), (0, 3), (2, 4, 3)]),
        Case(Residual(Residual(Dense(3))), (3,), depth=3),
        Case(Residual(Tanh()), (2, 3, 2), depth=2),
        Case(Residual(Dropout(0.4)), (4, 3), train=True, depth=2),
        Case(Residual(Branch(Dense(3), Tanh())), (4, 3), depth=3),
        Case(Residual(Stack(BLOCK, 2)), (4, 3), depth=5),
        *(Case(MERGED, (4, 3), depth=2, scale=scale) for scale in (1.0, 1e-4, 1e4)),
        *(Case(MERGED, shape, depth=2) for shape in [(3,), (1, 3), (2, 4, 3)]),
        Case(Branch(Dense(5)), (4, 3), depth=2),
        Case(Stack(block(3), 4, unroll=2), (2, 3), depth=9),
        Case(Stack(block(3), 3, unroll=2), (1, 3), depth=7, note="left-over"),
        Case(Stack(block(3), 1), (3,), depth=3),
        Case(Stack(Tanh(), 3), (4, 3), depth=3),
        Case(Stack(Stack(block(3), 2), 2), (4, 3), depth=9),
        Case(Stack(Residual(Branch(Dense(3), Chain(Dense(2), Tanh(), Dense(3)))), 2), (4, 3), depth=8),
        *(Case(Auto(scaled_sine, make_sine), (4, 3), depth=2, scale=scale) for scale in (1e-4, 5.0)),
        *(
            Case(Auto(scaled_sine, make_sine), shape, depth=2)
            for shape in [(1,), (3,), (1, 3), (4, 1), (0, 3), (2, 4, 3), (2, 1, 2, 3)]
        ),
        *(Case(Auto(sine), shape) for shape in [(), (4, 3)]),
        Case(Chain(Dense(4), Auto(sine), Dense(2)), (4, 3), depth=3),
        Case(Stack(Residual(Auto(scaled_sine, make_sine)), 2), (4, 3), depth=4),
    ),
]
