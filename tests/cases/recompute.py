from jaxbp import (
    BatchNorm,
    Chain,
    Conv,
    Dense,
    Dropout,
    Identity,
    Recompute,
    Residual,
    Stack,
    Tanh,
)
from tests.proof import Case, further

BLOCK = Chain(Dense(3), Tanh())
DRAWN = Residual(Chain(Dense(3), Dropout(0.4)))

CASES = [
    Case(Recompute(Chain(Dense(5), Tanh(), Dense(2))), (4, 3), depth=3),
    *further(
        *(Case(Recompute(BLOCK), shape, depth=2) for shape in [(3,), (1, 3), (0, 3), (2, 4, 3)]),
        *(Case(Recompute(BLOCK), (4, 3), depth=2, scale=scale) for scale in (1e-4, 1e4)),
        Case(Recompute(Identity()), (4, 3)),
        Case(Recompute(Chain(Dense(5), Dropout(0.4), Dense(2))), (4, 3), train=True, depth=3),
        Case(Recompute(BatchNorm()), (5, 3), train=True, modes=("jit",)),
        Case(Recompute(Conv(3, 2)), (2, 4, 5, 2)),
        Case(Recompute(Recompute(BLOCK)), (4, 3), depth=2),
        Case(Chain(Recompute(BLOCK), Residual(Recompute(Dense(3)))), (4, 3), depth=4),
        Case(Recompute(Stack(Residual(BLOCK), 3)), (4, 3), depth=7),
        Case(Stack(DRAWN, 3, recompute=True), (4, 3), train=True, depth=7),
        Case(Stack(DRAWN, 5, recompute=2), (4, 3), train=True, depth=11),
        Case(Stack(DRAWN, 4, 2, "sqrt"), (4, 3), train=True, depth=9),
    ),
]
