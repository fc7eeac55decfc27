"""The old address of what is in `jaxbp/oracle/autodiff.py`."""

from jaxbp.oracle.autodiff import function_gradients, network_gradient

__all__ = ["function_gradients", "network_gradient"]
