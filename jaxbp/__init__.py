"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from jaxbp.bridge import Auto, as_function
from jaxbp.compose import Branch, Chain, Residual, Stack
from jaxbp.layer import Eval, InputError, Layer, Train, gradient
from jaxbp.layers import (
    ELU,
    GELU,
    BatchNorm,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    Identity,
    LayerNorm,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from jaxbp.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from jaxbp.precision import Precision
from jaxbp.train.step import make_epoch, make_step, value_and_grad

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "GELU",
    "Auto",
    "BatchNorm",
    "Branch",
    "Chain",
    "Dense",
    "Dropout",
    "Eval",
    "Flatten",
    "GroupNorm",
    "Identity",
    "InputError",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "Loss",
    "Precision",
    "RMSNorm",
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
    "value_and_grad",
]
