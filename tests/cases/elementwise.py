from jaxbp import (
    ELU,
    GELU,
    Chain,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Stack,
    Tanh,
)
from tests.proof import Case, further

ELEMENTWISE = [
    Identity(),
    Sigmoid(),
    Tanh(),
    ReLU(),
    LeakyReLU(),
    ELU(),
    Softplus(),
    SiLU(),
    GELU(),
]
VARIANTS = [LeakyReLU(0.3), ELU(0.5), GELU(approximate=False)]
SCALES = [1e-4, 5.0, 1e4]  # one program serves them all
SHAPES = [(), (1,), (5,), (1, 7), (4, 1), (0, 3), (2, 4, 3), (2, 1, 3, 2)]


def scaled(layer):
    return [Case(layer, (4, 3), scale=scale, saturated=scale > 1) for scale in SCALES]


CASES = [
    case
    for layer in ELEMENTWISE
    for case in (
        Case(layer, (4, 3)),
        *further(*scaled(layer), *(Case(layer, shape) for shape in SHAPES)),
    )
]
CASES += [
    case
    for layer in VARIANTS
    for case in (Case(layer, (4, 3)), *further(*scaled(layer), Case(layer, ())))
]
CASES += [
    case
    for kind in (Softmax, LogSoftmax)
    for case in (
        Case(kind(), (4, 3)),
        Case(kind(axis=0), (4, 3), modes=("jit", "vmap")),
        *further(
            *scaled(kind()),
            *(Case(kind(), shape) for shape in [(3,), (1, 3), (2, 4, 3), (4, 1), (0, 3)]),
            *(Case(kind(axis=-2), shape) for shape in [(4, 3), (2, 1, 3)]),
            Case(kind(axis=0), (4, 3), scale=1e4, saturated=True),
        ),
    )
]
CASES += further(
    Case(Stack(Chain(*ELEMENTWISE, *VARIANTS, Softmax(), LogSoftmax()), 2), (4, 3), depth=28)
)
