"""Autodiff as the second opinion: what `jax.grad` says about the forward pass that training runs."""

from jaxbp.oracle.autodiff import reference_value_and_grad
from jaxbp.oracle.error import relative_error, to_float64
from jaxbp.oracle.proof import Proof, prove

__all__ = ["Proof", "prove", "reference_value_and_grad", "relative_error", "to_float64"]
