"""Losses: `forward(prediction, target) -> (value, saved)` and `backward(saved) -> ∂L/∂prediction`.

A prediction is a vector along the last axis; leading axes count predictions. The loss of one
prediction is a *sum* over its entries, as in the notes: no ½, no mean. `reduction` says what becomes of
the losses of many: `"mean"` over the predictions (the default, so that a learning rate does not depend
on the batch size), or their `"sum"`. Values are computed and returned in float32 at least, and so is
the gradient until it is done: it is rounded to the prediction's dtype once, at its end.
"""

from jaxbp.losses.base import Loss
from jaxbp.losses.entrywise import SigmoidCrossEntropy, SquaredError
from jaxbp.losses.linear import LinearCrossEntropy
from jaxbp.losses.softmax import SoftmaxCrossEntropy

__all__ = ["LinearCrossEntropy", "Loss", "SigmoidCrossEntropy", "SoftmaxCrossEntropy", "SquaredError"]
