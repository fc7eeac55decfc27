import jax.numpy as jnp
import numpy as np

from jaxbp import Attention, Chain, Dense, Residual, Stack
from tests.proof import Case, normal

JIT = ("jit",)  # eager and vmap are proven on the cases without it: every mode compiles anew
MAPPED = ("jit", "vmap")
HIDES = jnp.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], bool)  # the end, everything, some


def padded(key, dtype):
    return {"x": normal(key, (3, 4, 8), dtype), "mask": HIDES}


def all_hidden(key, dtype):
    return {"x": normal(key, (2, 4, 8), dtype), "mask": jnp.zeros((2, 4), bool)}


def pair(key, dtype):
    return normal(key, (3, 2, 8), dtype), normal(key + 7, (3, 4, 6), dtype)


def pair_padded(key, dtype):
    x, memory = pair(key, dtype)
    return {"x": x, "memory": memory, "mask": HIDES}


def pair_masked(key, dtype):
    x, memory = pair(key, dtype)
    mask = np.random.default_rng(5).integers(0, 2, (3, 2, 4)).astype(bool)
    mask[0, 1] = False
    return {"memory": memory, "mask": jnp.asarray(mask), "x": x}


CASES = [
    Case(Attention(2), (3, 4, 8), depth=4),
    Case(Attention(2), (1, 4, 8), depth=4, modes=JIT, note="batch-1"),
    Case(Attention(2), (4, 8), depth=4, modes=JIT, note="no-batch"),
    Case(Attention(2, causal=True), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(1, bias=False), (2, 2, 4, 8), depth=4, modes=JIT, note="two-batch-axes"),
    Case(Attention(4, causal=True, kv_heads=2), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(4, kv_heads=1), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(2, rotary=True), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(2, causal=True, rotary=True, kv_heads=1), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(2, window=2), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(2, causal=True, window=2), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(2, head_features=3), (3, 4, 8), depth=4, modes=JIT),
    Case(Attention(2, causal=True, dropout=0.3), (3, 4, 8), depth=4, train=True, modes=JIT),
    Case(Attention(2, bias=False), (3, 4, 8), depth=4, scale=1e-4, modes=JIT),
    Case(Attention(2, bias=False), (3, 4, 8), depth=4, scale=1e4, modes=JIT, saturated=True),
    Case(Attention(2), padded, depth=4, modes=MAPPED),
    Case(Attention(2, causal=True), padded, depth=4, modes=JIT),
    Case(Attention(2), all_hidden, depth=4, modes=JIT),
    Case(Attention(2), pair, depth=4, modes=MAPPED),
    Case(Attention(4, kv_heads=2, rotary=True), pair, depth=6, modes=JIT),
    Case(Attention(2), pair_padded, depth=4, modes=JIT),
    Case(Attention(2), pair_masked, depth=4, modes=JIT),
    Case(Stack(Residual(Attention(2, causal=True)), 2), (3, 4, 8), depth=10, modes=JIT),
    Case(Chain(Dense(8), Attention(2, causal=True), Dense(2)), (3, 4, 3), depth=6, modes=JIT),
]
