from jaxbp import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from tests.proof import Case

ELEMENTWISE = [
    Identity(),
    Sigmoid(),
    Tanh(),
    ReLU(),
    LeakyReLU(),
    LeakyReLU(0.3),
    ELU(),
    ELU(0.5),
    Softplus(),
    SiLU(),
    GELU(),
    GELU(approximate=False),
]

CASES = [
    Case(layer, shape, scale=scale, saturated=scale > 1)
    for layer in ELEMENTWISE
    for shape, scale in [
        ((), 1.0),
        ((4, 3), 1.0),
        ((4, 3), 1e-4),
        ((4, 3), 5.0),
        ((4, 3), 1e4),
        ((2, 4, 3), 1.0),
    ]
]
CASES += [
    Case(layer, shape, scale=scale, saturated=scale > 1)
    for layer in [Softmax(), LogSoftmax(), Softmax(axis=0), LogSoftmax(axis=-2)]
    for shape, scale in [((4, 3), 1.0), ((4, 3), 1e-4), ((4, 3), 1e4), ((2, 4, 3), 1.0), ((4, 1), 1.0)]
]
