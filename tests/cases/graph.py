from jaxbp import (
    Add,
    Branch,
    Chain,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Graph,
    Identity,
    MaxPool,
    ReLU,
    Residual,
    Softmax,
    Stack,
    Tanh,
)
from tests.proof import Case, further, normal


def pair(key, dtype):
    return normal(key, (4, 3), dtype), normal(key + 50, (4, 3), dtype)


def pair_of_widths(key, dtype):
    return normal(key, (4, 3), dtype), normal(key + 50, (4, 2), dtype)


def one(key, dtype):
    return (normal(key, (4, 3), dtype),)


def several(*shapes):
    """A function of a name that tells its cases apart."""

    def draw(key, dtype):
        return tuple(normal(key + 50 * i, shape, dtype) for i, shape in enumerate(shapes))

    draw.__name__ = "+".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
    return draw


def small_pair(key, dtype):
    return tuple(1e-4 * part for part in pair(key, dtype))


def large_pair(key, dtype):
    return tuple(1e4 * part for part in pair(key, dtype))


DIAMOND = Graph(
    a=(Dense(3), "x"), b=(Tanh(), "a"), c=(Dense(3), "a"), y=(Add(), ("b", "c")), z=(Dense(2), "y")
)
FAN = Graph(a=(Tanh(), "x"), b=(Add(), ("a", "a", "x")), c=(Concat(), ("b", "a", "x")))
ENDS = Graph(
    inputs=("u", "v"),
    outputs=("v", "sum", "share"),
    sum=(Add(), ("u", "v")),
    share=(Chain(Dense(2), Softmax()), "sum"),
)
UNET = Graph(
    down=(Chain(Conv(4, (3,)), ReLU()), "x"),
    deep=(Chain(MaxPool((2,)), Conv(5, (3,)), ReLU(), ConvTranspose(4, (2,), 2)), "down"),
    both=(Concat(), ("down", "deep")),
    y=(Conv(2, (1,)), "both"),
)
LADDER = Graph(
    a=(Dense(3), "x"),
    b=(Add(), ("a", "x")),
    c=(Dense(3), "b"),
    d=(Add(), ("c", "b", "a", "x")),
)

CASES = [
    Case(DIAMOND, (4, 3), depth=4),
    Case(ENDS, pair, depth=3),
    Case(Add(), pair),
    Case(Concat(), pair_of_widths),
]
CASES += further(
    Case(DIAMOND, (3,), depth=4, note="no-batch"),
    Case(DIAMOND, (1, 3), depth=4, note="batch-1"),
    Case(DIAMOND, (4, 3), depth=4, scale=1e-4),
    Case(FAN, (4, 3), depth=3),
    Case(FAN, (4, 3), depth=3, scale=1e-4),
    Case(FAN, (2, 2, 3), depth=3),
    Case(UNET, (2, 6, 3), depth=6),
    Case(LADDER, (4, 3), depth=5),
    Case(LADDER, (4, 3), depth=5, scale=1e4),
    Case(Stack(LADDER, 2), (4, 3), depth=9),
    Case(Graph(y=(Graph(y=(Dense(3), "x")), "x")), (4, 3)),
    Case(Graph(y=(Dropout(0.4), "x"), z=(Dense(2), "y")), (4, 3), train=True, depth=2),
    Case(Residual(Graph(y=(Branch(Dense(3), Identity()), "x"))), (4, 3), depth=3),
    Case(Add(), one),
    Case(Add(), small_pair),
    Case(Add(), large_pair),
    Case(Concat(), one),
    Case(Concat(), pair),
    Case(Concat(), small_pair),
    Case(Concat(), large_pair),
    *(Case(Add(), several(*[shape] * 3)) for shape in [(), (5,), (1, 3), (0, 3), (2, 4, 3)]),
    *(Case(Add(), several(*[(4, 3)] * n)) for n in (2, 5, 7)),
    *(
        Case(Concat(), several(*shapes))
        for shapes in [
            ((3,), (2,)),
            ((1, 3), (1, 1), (1, 2)),
            ((2, 1, 3), (2, 1, 2)),
            ((2, 4, 3), (2, 4, 1), (2, 4, 5)),
            ((4, 1), (4, 1)),
            ((4, 3), (4, 0)),
            ((0, 3), (0, 2)),
        ]
    ),
)
