"""Most of the time of these tests goes into compiling programs that run once or twice."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Programs are compiled with few optimisations: their results are compared, not their speed."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
