"""What else `δ` is good for, from the one walk: see `README.md` beside this file."""

from jaxbp.beyond.book import Book, record
from jaxbp.beyond.clip import clipped_gradient
from jaxbp.beyond.curvature import Factors, ggn_diagonal, kronecker_factors
from jaxbp.beyond.privacy import epsilon, noise_for
from jaxbp.beyond.rules import (
    FeedbackAlignment,
    GuidedReLU,
    RelevanceDense,
    StraightThrough,
    Surrogate,
    feedback_alignment,
    guided,
    in_place_of,
    relevance,
)
from jaxbp.beyond.second import products
from jaxbp.beyond.statistics import Statistics, gradient_statistics

__all__ = [
    "Book",
    "Factors",
    "FeedbackAlignment",
    "GuidedReLU",
    "RelevanceDense",
    "Statistics",
    "StraightThrough",
    "Surrogate",
    "clipped_gradient",
    "epsilon",
    "feedback_alignment",
    "ggn_diagonal",
    "gradient_statistics",
    "guided",
    "in_place_of",
    "kronecker_factors",
    "noise_for",
    "products",
    "record",
    "relevance",
]
