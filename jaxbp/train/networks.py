"""The networks that a config can name. Adding one: a struct with its fields and a `build`, here.

`build(dataset)` returns the network as a layer; `takes` says what inputs it wants of the data: `vector`
flattens every example, `image` keeps `[height, width, channels]`, `tokens` keeps integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from jaxbp import layers
from jaxbp.compose import Chain
from jaxbp.layer import InputError, Layer
from jaxbp.models import mlp
from jaxbp.train.schema import Count, Section, Share

if TYPE_CHECKING:
    from jaxbp.train.data import Dataset

ACTIVATIONS: dict[str, Layer] = {
    "relu": layers.ReLU(),
    "sigmoid": layers.Sigmoid(),
    "tanh": layers.Tanh(),
    "leaky_relu": layers.LeakyReLU(),
    "elu": layers.ELU(),
    "silu": layers.SiLU(),
    "gelu": layers.GELU(),
    "softplus": layers.Softplus(),
    "identity": layers.Identity(),
}
Activation = Literal[
    "relu", "sigmoid", "tanh", "leaky_relu", "elu", "silu", "gelu", "softplus", "identity"
]
OUTPUTS: dict[str, Layer | None] = {
    "logits": None,
    "softmax": layers.Softmax(),
    "sigmoid": layers.Sigmoid(),
}


class Model(Section, frozen=True, kw_only=True):
    """What every network has."""

    takes: ClassVar[str] = "vector"

    name: str = "mlp"
    """which network"""

    def build(self, dataset: Dataset) -> Layer:
        raise InputError(f"model.name: {self.name!r} cannot be built")


class MLP(Model, frozen=True, kw_only=True):
    """A network of dense layers."""

    hidden: Annotated[tuple[Count, ...], Meta()] = (128,)
    """neurons in each hidden layer, from input to output; empty for none"""
    activation: Activation = "relu"
    """after every hidden layer"""
    output: Literal["logits", "softmax", "sigmoid"] = "logits"
    """after the last layer; the cross-entropies take logits"""
    dropout: Share = 0.0
    """share of each hidden layer that is dropped in training"""
    initializer: Literal["he", "glorot", "lecun", "normal", "zeros", "data"] = "he"
    """how weights start; "data" takes those that come with the data (the notes')"""

    def build(self, dataset: Dataset) -> Layer:
        if self.initializer == "data" and dataset.start is None:
            raise InputError('model.initializer: "data" needs data with weights, such as "notes"')
        net = mlp(
            *self.hidden,
            dataset.outputs,
            activation=ACTIVATIONS[self.activation],
            dropout=self.dropout,
            initializer="he" if self.initializer == "data" else self.initializer,
        )
        last = OUTPUTS[self.output]
        return Chain(*net.layers, last) if last else net


MODELS: dict[str, type[Model]] = {"mlp": MLP}
