"""What else `δ` is good for, from the one walk: see `README.md` beside this file."""

from jaxbp.beyond.book import Book, record
from jaxbp.beyond.clip import clipped_gradient
from jaxbp.beyond.statistics import Statistics, gradient_statistics

__all__ = ["Book", "Statistics", "clipped_gradient", "gradient_statistics", "record"]
