"""Networks that people ask for by name, made of layers; text from them, and a table of one."""

from jaxbp.models.dense import autoencoder, mlp
from jaxbp.models.language import char_lstm, gated_mlp, gpt
from jaxbp.models.notes import notes_network
from jaxbp.models.vision import lenet, resnet

__all__ = ["autoencoder", "char_lstm", "gated_mlp", "gpt", "lenet", "mlp", "notes_network", "resnet"]
