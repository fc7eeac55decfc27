"""An older path to `jaxbp.models.language`: networks for text."""

from jaxbp.layers.initializers import Scaled
from jaxbp.models.language import SIZES, Size, char_lstm, gated_mlp, gpt

__all__ = ["SIZES", "Scaled", "Size", "char_lstm", "gated_mlp", "gpt"]
