from jaxbp import GELU, Branch, Dense, ReLU, Residual, SiLU, Stack, Tanh
from jaxbp.models import gated_mlp
from tests.proof import Case

JIT = ("jit",)  # eager and vmap are proven on the cases without it

CASES = [
    Case(Branch(Dense(5), Tanh(), merge="product"), (4, 5), depth=3),
    Case(Branch(Dense(5), Dense(5), Dense(5), merge="product"), (4, 3), depth=4, modes=JIT),
    Case(Branch(ReLU(), ReLU(), merge="product"), (4, 5), depth=3, modes=JIT, note="factors-of-0"),
    Case(Branch(Tanh(), merge="product"), (4, 5), depth=2, modes=JIT),
    Case(Branch(Dense(5), Tanh(), merge="product"), (1, 5), depth=3, modes=JIT),
    Case(gated_mlp(3, 5), (4, 3), depth=5, note="swiglu"),
    Case(gated_mlp(3, 5, GELU(), bias=True), (2, 4, 3), depth=5, modes=JIT, note="geglu"),
    Case(gated_mlp(1, 1, SiLU()), (1, 1), depth=5, modes=JIT, note="one-by-one"),
    Case(gated_mlp(3, 5), (4, 3), depth=5, modes=JIT, scale=1e-4),
    Case(gated_mlp(3, 5), (4, 3), depth=5, modes=JIT, scale=1e4),
    Case(Stack(Residual(gated_mlp(3, 5)), 2), (4, 3), depth=10, modes=JIT),
]
