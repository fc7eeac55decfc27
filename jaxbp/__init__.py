"""jaxbp: backpropagation written by hand in JAX, proven, and fast. The public names, nothing else.

A name is imported when it is first asked for: the command's `--help` and the pytest plugin need no JAX.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxbp import beyond
    from jaxbp.app.run import load_run
    from jaxbp.bridge import Auto, as_function
    from jaxbp.check.nonfinite import locate_nonfinite
    from jaxbp.check.report import Report
    from jaxbp.check.sensitivity import check_sensitivity
    from jaxbp.check.verify import assert_gradients, check_gradients
    from jaxbp.compose import Branch, Chain, Residual, Stack, Tied
    from jaxbp.explain import explain_function, explain_weight
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
    from jaxbp.losses import (
        LinearCrossEntropy,
        Loss,
        SigmoidCrossEntropy,
        SoftmaxCrossEntropy,
        SquaredError,
    )
    from jaxbp.precision import Precision, with_precision
    from jaxbp.recompute import Recompute
    from jaxbp.summary import summary
    from jaxbp.train.step import apply_updates, make_epoch, make_step, value_and_grad
    from jaxbp.train.sweep import make_sweep

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

# Where each name is at home; the imports above say the same to type checkers, and a test compares.
_HOMES = {
    "jaxbp.bridge": "Auto as_function",
    "jaxbp.compose": "Branch Chain Residual Stack Tied",
    "jaxbp.graph": "Add Concat Graph",
    "jaxbp.layer": "Eval InputError Layer Train gradient",
    "jaxbp.layers": (
        "ELU GELU GRU LSTM RNN Attention AvgPool BatchNorm Conv ConvTranspose Dense Dropout "
        "Embedding Flatten GlobalAvgPool GroupNorm Head Identity LastStep LayerNorm LeakyReLU "
        "LogSoftmax MaxPool PositionEmbedding ReLU RMSNorm Sigmoid SiLU Softmax Softplus Tanh"
    ),
    "jaxbp.losses": "LinearCrossEntropy Loss SigmoidCrossEntropy SoftmaxCrossEntropy SquaredError",
    "jaxbp.precision": "Precision with_precision",
    "jaxbp.recompute": "Recompute",
    "jaxbp.summary": "summary",
    "jaxbp.train.step": "apply_updates make_epoch make_step value_and_grad",
    "jaxbp.train.sweep": "make_sweep",
    "jaxbp.app.run": "load_run",
    "jaxbp.check.nonfinite": "locate_nonfinite",
    "jaxbp.check.report": "Report",
    "jaxbp.check.sensitivity": "check_sensitivity",
    "jaxbp.check.verify": "assert_gradients check_gradients",
    "jaxbp.explain": "explain_function explain_weight",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        globals()[name] = found = getattr(import_module(_HOME[name]), name)
        return found
    if not name.startswith("_") and find_spec(f"jaxbp.{name}"):  # `bp.models`, as if it were imported
        return import_module(f"jaxbp.{name}")
    raise AttributeError(f"module 'jaxbp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the module `jaxbp.summary` does not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
