"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from jaxbp.bridge import Auto, as_function
from jaxbp.check.nonfinite import locate_nonfinite
from jaxbp.check.report import Report
from jaxbp.check.sensitivity import check_sensitivity
from jaxbp.check.verify import assert_gradients, check_gradients
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
    "Report",
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
    "assert_gradients",
    "check_gradients",
    "check_sensitivity",
    "gradient",
    "locate_nonfinite",
    "make_epoch",
    "make_step",
    "value_and_grad",
]
