"""What else `δ` is good for, from the one walk: see `README.md` beside this file."""

from jaxbp.beyond.activity import LayerStatistics, layer_statistics
from jaxbp.beyond.attribution import ATTRIBUTIONS, Attribution, attributions
from jaxbp.beyond.book import Book, record
from jaxbp.beyond.clip import clipped_gradient
from jaxbp.beyond.curvature import Factors, ggn_diagonal, kronecker_factors
from jaxbp.beyond.influences import influence
from jaxbp.beyond.natural import KFACState, kfac, scale_by_kfac
from jaxbp.beyond.posterior import Posterior, calibration, laplace
from jaxbp.beyond.privacy import epsilon, noise_for
from jaxbp.beyond.rules import (
    DirectFeedback,
    FeedbackAlignment,
    GuidedReLU,
    StraightThrough,
    Surrogate,
    direct_feedback,
    feedback_alignment,
    guided,
    in_place_of,
)
from jaxbp.beyond.second import products
from jaxbp.beyond.shares import RelevanceConv, RelevanceDense, relevance
from jaxbp.beyond.statistics import Statistics, gradient_statistics

__all__ = [
    "ATTRIBUTIONS",
    "Attribution",
    "Book",
    "DirectFeedback",
    "Factors",
    "FeedbackAlignment",
    "GuidedReLU",
    "KFACState",
    "LayerStatistics",
    "Posterior",
    "RelevanceConv",
    "RelevanceDense",
    "Statistics",
    "StraightThrough",
    "Surrogate",
    "attributions",
    "calibration",
    "clipped_gradient",
    "direct_feedback",
    "epsilon",
    "feedback_alignment",
    "ggn_diagonal",
    "gradient_statistics",
    "guided",
    "in_place_of",
    "influence",
    "kfac",
    "kronecker_factors",
    "laplace",
    "layer_statistics",
    "noise_for",
    "products",
    "record",
    "relevance",
    "scale_by_kfac",
]
