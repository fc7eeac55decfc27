"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxbp.bridge import Auto, as_function
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
    LastStep,
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
from jaxbp.precision import Precision, with_precision
from jaxbp.recompute import Recompute
from jaxbp.summary import summary
from jaxbp.train.step import apply_updates, make_epoch, make_step, value_and_grad
from jaxbp.train.sweep import make_sweep

if TYPE_CHECKING:
    from jaxbp import beyond
    from jaxbp.app.run import load_run
    from jaxbp.check.nonfinite import locate_nonfinite
    from jaxbp.check.report import Report
    from jaxbp.check.sensitivity import check_sensitivity
    from jaxbp.check.verify import assert_gradients, check_gradients
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
    "LastStep",
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
    "Recompute",
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
    "apply_updates",
    "as_function",
    "assert_gradients",
    "beyond",
    "check_gradients",
    "check_sensitivity",
    "explain_function",
    "explain_weight",
    "gradient",
    "load_run",
    "locate_nonfinite",
    "make_epoch",
    "make_step",
    "make_sweep",
    "summary",
    "value_and_grad",
    "with_precision",
]


# Imported when first asked for: training needs no checker, no explanations, and nothing but gradients.
_LATER = {
    "Report": "jaxbp.check.report",
    "assert_gradients": "jaxbp.check.verify",
    "check_gradients": "jaxbp.check.verify",
    "check_sensitivity": "jaxbp.check.sensitivity",
    "explain_function": "jaxbp.explain",
    "explain_weight": "jaxbp.explain",
    "load_run": "jaxbp.app.run",
    "locate_nonfinite": "jaxbp.check.nonfinite",
}


def __getattr__(name: str) -> Any:
    if name == "beyond":
        return import_module("jaxbp.beyond")
    if name not in _LATER:
        raise AttributeError(f"module 'jaxbp' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATER[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
