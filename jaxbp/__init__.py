"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from jaxbp.bridge import Auto, as_function
from jaxbp.compose import Branch, Chain, Residual, Stack
from jaxbp.layer import Eval, InputError, Layer, Train, gradient
from jaxbp.layers import (
    ELU,
    GELU,
    Dense,
    Dropout,
    Flatten,
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
from jaxbp.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from jaxbp.precision import Precision
from jaxbp.train.step import make_epoch, make_step, value_and_grad
from jaxbp.train.sweep import make_sweep

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "GELU",
    "Auto",
    "Branch",
    "Chain",
    "Dense",
    "Dropout",
    "Eval",
    "Flatten",
    "Identity",
    "InputError",
    "Layer",
    "LeakyReLU",
    "LogSoftmax",
    "Loss",
    "Precision",
    "ReLU",
    "Residual",
    "SiLU",
    "Sigmoid",
    "SigmoidCrossEntropy",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Softplus",
    "SquaredError",
    "Stack",
    "Tanh",
    "Train",
    "as_function",
    "gradient",
    "make_epoch",
    "make_step",
    "make_sweep",
    "value_and_grad",
]
