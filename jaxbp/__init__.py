"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from jaxbp.bridge import Auto, as_function
from jaxbp.compose import Branch, Chain, Residual, Stack
from jaxbp.graph import Add, Concat, Graph
from jaxbp.layer import Eval, InputError, Layer, Train, gradient
from jaxbp.layers import (
    ELU,
    GELU,
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Identity,
    LayerNorm,
    LeakyReLU,
    LogSoftmax,
    MaxPool,
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
from jaxbp.train.sweep import make_sweep

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "GELU",
    "Add",
    "Auto",
    "AvgPool",
    "BatchNorm",
    "Branch",
    "Chain",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Dropout",
    "Eval",
    "Flatten",
    "GlobalAvgPool",
    "Graph",
    "GroupNorm",
    "Identity",
    "InputError",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "Loss",
    "MaxPool",
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
    "make_sweep",
    "value_and_grad",
]
