"""The networks that a config can name. Adding one: a struct with its fields and a `build`, here.

`build(dataset)` returns the network as a layer; `takes` says what inputs it wants of the data: `vector`
flattens every example, `image` keeps `[height, width, channels]`, `tokens` keeps integers.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta

from jaxbp import layers
from jaxbp.app.schema import OWN, Count, Section, Share
from jaxbp.compose import Chain
from jaxbp.layer import InputError, Layer
from jaxbp.models import autoencoder, char_lstm, gpt, lenet, mlp, resnet

if TYPE_CHECKING:
    from jaxbp.app.data import Dataset

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
    reproduces: ClassVar[bool] = False  # whether the target is the input itself

    name: str = "mlp"
    """which network"""

    def build(self, dataset: Dataset) -> Layer:
        raise InputError(f"model.name: {self.name!r} cannot be built")


class MLP(Model, frozen=True, kw_only=True):
    """A network of dense layers; without hidden ones, linear or logistic regression."""

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


class Autoencoder(Model, frozen=True, kw_only=True):
    """Dense layers that reproduce their input through a narrow middle, the code."""

    reproduces: ClassVar[bool] = True

    name: str = "autoencoder"
    """which network"""
    features: Annotated[tuple[Count, ...], Meta(min_length=1)] = (64, 8)
    """neurons in each layer of the encoder, the code last; the decoder mirrors them"""
    activation: Activation = "relu"
    """after every layer but the code and the last"""

    def build(self, dataset: Dataset) -> Layer:
        return autoencoder(
            *self.features, outputs=dataset.outputs, activation=ACTIVATIONS[self.activation]
        )


class LeNet(Model, frozen=True, kw_only=True):
    """Convolutions, each followed by max pooling, then dense layers."""

    takes: ClassVar[str] = "image"

    name: str = "lenet"
    """which network"""
    features: Annotated[tuple[Count, ...], Meta(min_length=1)] = (6, 16)
    """features of each convolution; each halves the image"""
    hidden: Annotated[tuple[Count, ...], Meta()] = (120, 84)
    """neurons in each hidden dense layer; empty for none"""
    kernel: Count = 5
    """side of the kernels"""
    activation: Activation = "relu"
    """after every layer but the last"""
    dropout: Share = 0.0
    """share of what enters each dense layer that is dropped in training"""

    def build(self, dataset: Dataset) -> Layer:
        _check_image(self, dataset)
        return lenet(
            dataset.outputs,
            features=self.features,
            hidden=self.hidden,
            kernel=self.kernel,
            activation=ACTIVATIONS[self.activation],
            dropout=self.dropout,
        )


class ResNet(Model, frozen=True, kw_only=True):
    """A residual network for small images, with BatchNorm."""

    takes: ClassVar[str] = "image"

    name: str = "resnet"
    """which network"""
    blocks: Count = 1
    """blocks a stage; 3 with three widths is ResNet-20"""
    widths: Annotated[tuple[Count, ...], Meta(min_length=1)] = (16, 32, 64)
    """features of each stage; every stage but the first halves the image"""
    dropout: Share = 0.0
    """share of what enters the last layer that is dropped in training"""
    momentum: Share = 0.9
    """share of the running statistics that is kept at a step"""

    def build(self, dataset: Dataset) -> Layer:
        _check_image(self, dataset)
        return resnet(
            dataset.outputs,
            blocks=self.blocks,
            widths=self.widths,
            dropout=self.dropout,
            momentum=self.momentum,
        )


def _check_image(model: Model, dataset: Dataset) -> None:
    if len(dataset.shape) != 3:
        raise InputError(
            f'model.name: "{model.name}" takes images [height, width, channels], '
            f'but an input of "{dataset.name}" has shape {list(dataset.shape)}'
            + "; data.shape says what image a row is, such as 28 28"
            * (dataset.name == "file")
        )


class GPT(Model, frozen=True, kw_only=True):
    """A decoder-only transformer over tokens, with a tied head."""

    takes: ClassVar[str] = "tokens"

    name: str = "gpt"
    """which network"""
    depth: Count = 4
    """blocks"""
    heads: Count = 4
    """heads of attention in a block"""
    features: Count = 128
    """width"""
    positions: Literal["rotary", "learned"] = "rotary"
    """how places are told apart; learned ones end with the window"""
    dropout: Share = 0.0
    """share of every block's outputs, and of its attention, that is dropped in training"""

    def build(self, dataset: Dataset) -> Layer:
        return gpt(
            dataset.outputs,
            depth=self.depth,
            heads=self.heads,
            features=self.features,
            length=_tokens(dataset, self.name),
            positions=self.positions,
            dropout=self.dropout,
        )


class CharLSTM(Model, frozen=True, kw_only=True):
    """LSTMs over tokens."""

    takes: ClassVar[str] = "tokens"

    name: str = "char_lstm"
    """which network"""
    depth: Count = 1
    """LSTMs in a row"""
    features: Count = 256
    """size of an LSTM's state"""
    embedding: Count = 64
    """size of a token's vector"""
    dropout: Share = 0.0
    """share of every LSTM's outputs that is dropped in training"""

    def build(self, dataset: Dataset) -> Layer:
        _tokens(dataset, self.name)
        return char_lstm(
            dataset.outputs,
            features=self.features,
            depth=self.depth,
            embedding=self.embedding,
            dropout=self.dropout,
        )


def _tokens(dataset: Dataset, name: str) -> int:
    """The length of a window of tokens."""
    if len(dataset.shape) != 1 or not np.issubdtype(dataset.x.dtype, np.integer):
        raise InputError(f'model.name: "{name}" reads tokens, such as data.name = "text"')
    return dataset.shape[0]


class Own(Model, frozen=True, kw_only=True):
    """Your own: `build(data)` in my_module.py here, or in an installed module, returns a layer.

    `data.outputs` is how many numbers the network must give for an input of `data.shape`.
    """

    takes: ClassVar[str] = "any"  # inputs as the data has them

    name: str = OWN
    """the module and the function in it"""

    def build(self, dataset: Dataset) -> Layer:
        net = own_function(self.name)(dataset)
        if not isinstance(net, Layer):
            raise InputError(f'model.name: "{self.name}" returned {type(net).__name__}, expected a layer')
        return net


def own_function(name: str) -> Any:
    """What `module:function` names; a module in the folder that the command runs in comes first."""
    module, _, function = name.partition(":")
    here, what = os.getcwd(), f'model.name: "{name}"'
    sys.path.insert(0, here)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or not module.startswith(error.name):
            raise InputError(f"{what}: {module} imports {error.name}, which is not there") from None
        raise InputError(
            f"{what}: no module {module} in {here} and none that is installed; run this in the folder of "
            f"{module.split('.')[0]}.py, or put that on PYTHONPATH"
        ) from None
    except SyntaxError as error:
        raise InputError(f"{what}: {error.filename}, line {error.lineno}: {error.msg}") from None
    finally:
        sys.path.remove(here)
    if not callable(getattr(found, function, None)):
        there = [key for key, value in vars(found).items() if callable(value) and key[0] != "_"]
        hint = difflib.get_close_matches(function, there, n=1)
        more = f'; did you mean "{module}:{hint[0]}"?' if hint else ""
        raise InputError(f"{what}: no function {function!r} in {found.__file__}{more}")
    return getattr(found, function)


MODELS: dict[str, type[Model]] = {
    "mlp": MLP,
    "autoencoder": Autoencoder,
    "lenet": LeNet,
    "resnet": ResNet,
    "gpt": GPT,
    "char_lstm": CharLSTM,
    OWN: Own,
}
