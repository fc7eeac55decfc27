"""Leaf layers, one family a file: derivation, `forward`, `pull` and `gradient` side by side."""

from jaxbp.layers.attention import Attention
from jaxbp.layers.conv import Conv, ConvTranspose
from jaxbp.layers.dense import Dense
from jaxbp.layers.dropout import Dropout
from jaxbp.layers.elementwise import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from jaxbp.layers.embedding import Embedding, Head, PositionEmbedding
from jaxbp.layers.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from jaxbp.layers.pool import AvgPool, GlobalAvgPool, MaxPool
from jaxbp.layers.recurrent import GRU, LSTM, RNN
from jaxbp.layers.shape import Flatten, LastStep
from jaxbp.layers.softmax import LogSoftmax, Softmax

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "Attention",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool",
    "GroupNorm",
    "Head",
    "Identity",
    "LastStep",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool",
    "PositionEmbedding",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]
