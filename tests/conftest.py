"""Strict while testing: float64 is available, dtypes and ranks do not promote, shapes are checked."""

import signal

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background; some tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unchecked():
    """Without the shape checks of testing: bad input as a user meets it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
