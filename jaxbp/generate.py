"""An older path to `jaxbp.models.generate`: text from a network."""

from jaxbp.models.generate import advance, make_generator, start

__all__ = ["advance", "make_generator", "start"]
