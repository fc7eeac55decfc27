"""Why a weight has the gradient that it has: the chain rule, path by path, with the numbers."""

from jaxbp.explain.explanation import Explanation, Path
from jaxbp.explain.function import FunctionExplanation, explain_function
from jaxbp.explain.weight import Explainer, explain_weight

__all__ = [
    "Explainer",
    "Explanation",
    "FunctionExplanation",
    "Path",
    "explain_function",
    "explain_weight",
]
