"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from jaxbp.explain import explain_function, explain_weight

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
    "explain_function",
    "explain_weight",
    "gradient",
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
