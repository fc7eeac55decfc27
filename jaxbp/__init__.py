"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from typing import TYPE_CHECKING, Any

from jaxbp.bridge import Auto, as_function
from jaxbp.check.nonfinite import locate_nonfinite
from jaxbp.check.report import Report
from jaxbp.check.sensitivity import check_sensitivity
from jaxbp.check.verify import assert_gradients, check_gradients
from jaxbp.compose import Branch, Chain, Residual, Stack, Tied
from jaxbp.graph import Add, Concat, Graph
from jaxbp.layer import Eval, InputError, Layer, Train, gradient
from jaxbp.layers import (
    ELU,
    GELU,
    GRU,
    LSTM,
    RNN,
    Attention,
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Head,
    Identity,
    LayerNorm,
    LeakyReLU,
    LogSoftmax,
    MaxPool,
    PositionEmbedding,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from jaxbp.losses import LinearCrossEntropy, Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError
from jaxbp.precision import Precision
from jaxbp.train.step import make_epoch, make_step, value_and_grad
from jaxbp.train.sweep import make_sweep

if TYPE_CHECKING:
    from jaxbp.explain import explain_function, explain_weight

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "Add",
    "Attention",
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
    "Embedding",
    "Eval",
    "Flatten",
    "GlobalAvgPool",
    "Graph",
    "GroupNorm",
    "Head",
    "Identity",
    "InputError",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LinearCrossEntropy",
    "LogSoftmax",
    "Loss",
    "MaxPool",
    "PositionEmbedding",
    "Precision",
    "RMSNorm",
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
    "Tied",
    "Train",
    "as_function",
    "assert_gradients",
    "check_gradients",
    "check_sensitivity",
    "explain_function",
    "explain_weight",
    "gradient",
    "locate_nonfinite",
    "make_epoch",
    "make_step",
    "make_sweep",
    "value_and_grad",
]


def __getattr__(name: str) -> Any:
    """Explaining is imported when it is first asked for: training needs none of it."""
    if name in ("explain_function", "explain_weight"):
        from jaxbp import explain

        return getattr(explain, name)
    raise AttributeError(f"module 'jaxbp' has no attribute {name!r}")
