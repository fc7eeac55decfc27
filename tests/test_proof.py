"""Every layer, loss and combinator, proven; and the harness itself, proven to fail on wrong ones."""

from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

import jaxbp
from jaxbp import Chain, Dense, Layer, Sigmoid, Softmax, SquaredError
from jaxbp.losses import Loss
from tests.cases import CASES, LOSS_CASES
from tests.proof import (
    DTYPES,
    Case,
    LossCase,
    prove_by_differences,
    prove_layer,
    prove_loss,
    prove_loss_by_differences,
)


def public(base: type) -> set[type]:
    """The concrete public classes under `base`."""
    names = (getattr(jaxbp, name) for name in jaxbp.__all__)
    return {c for c in names if isinstance(c, type) and issubclass(c, base) and c not in (Layer, Loss)}


def test_every_public_layer_and_loss_has_cases_and_nothing_else_does() -> None:
    assert {type(case.layer) for case in CASES} == public(Layer)
    assert {type(case.loss) for case in LOSS_CASES} == public(Loss)


def test_every_layer_and_loss_has_a_dozen_cases_at_least() -> None:
    counts = Counter(type(case.layer) for case in CASES) + Counter(type(c.loss) for c in LOSS_CASES)
    assert {kind.__name__: n for kind, n in counts.items() if n < 12} == {}


def test_no_case_stands_twice() -> None:
    names = [str(case) for case in [*CASES, *LOSS_CASES]]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("proof", [*DTYPES, "differences"])  # side by side: they share a program
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case, proof: str) -> None:
    if proof == "differences":
        prove_by_differences(case)
    else:
        prove_layer(case, proof)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LOSS_CASES, ids=str)
def test_loss(case: LossCase, dtype: str) -> None:
    prove_loss(case, dtype)


@pytest.mark.parametrize("case", LOSS_CASES, ids=str)
def test_loss_by_differences(case: LossCase) -> None:
    prove_loss_by_differences(case)


# --- wrong on purpose -------------------------------------------------------------------------------


class WrongSign(Dense):
    def pull(self, params, saved, dy):
        dx, delta = super().pull(params, saved, dy)
        return -dx, delta


class MeanBias(Dense):
    def gradient(self, params, saved, delta):
        return {**super().gradient(params, saved, delta), "b": jnp.mean(delta, axis=0)}


class FactorOfTwo(Dense):
    def gradient(self, params, saved, delta):
        right = super().gradient(params, saved, delta)
        return {**right, "w": 2 * right["w"]}


class SlightlyOff(Dense):
    def gradient(self, params, saved, delta):
        right = super().gradient(params, saved, delta)
        return {**right, "w": right["w"].at[0, 0].multiply(1.01)}


class MissingLeaf(Dense):
    def gradient(self, params, saved, delta):
        return {"w": super().gradient(params, saved, delta)["w"]}


class WrongDtype(Dense):
    def gradient(self, params, saved, delta):
        right = super().gradient(params, saved, delta)
        return jax.tree.map(lambda g: g.astype("float16"), right)


class WrongUnderJit(Dense):
    def pull(self, params, saved, dy):
        dx, delta = super().pull(params, saved, dy)
        return (0.5 * dx if isinstance(dx, jax.core.Tracer) else dx), delta


class MissingPath(Softmax):
    """The lecture notes' slip: only the path through the output's own numerator."""

    def pull(self, params, saved, dy):
        return dy * saved * (1 - saved), ()


class AtTheInput(Sigmoid):
    """The derivative written in the output, evaluated at the input."""

    def forward(self, params, x, mode=jaxbp.Eval()):
        return super().forward(params, x, mode)[0], x

    def pull(self, params, saved, dy):
        return dy * saved * (1 - saved), ()


@dataclass(frozen=True, repr=False)
class ForgetsTheSkip(jaxbp.Residual):
    def backward(self, params, saved, dy, gather=None):
        return self.body.backward(params, saved, dy, gather)


WRONG = [
    Case(layer, (4, 3))
    for layer in [
        WrongSign(5),
        MeanBias(5),
        FactorOfTwo(5),
        SlightlyOff(5),
        MissingLeaf(5),
        WrongDtype(5),
        WrongUnderJit(5),
        MissingPath(),
        AtTheInput(),
        ForgetsTheSkip(Dense(3)),
        Chain(Dense(4), AtTheInput(), Dense(2)),
    ]
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", WRONG, ids=str)
def test_the_harness_fails_on(case: Case, dtype: str) -> None:
    with pytest.raises(AssertionError):
        prove_layer(case, dtype)


@pytest.mark.parametrize("case", [WRONG[0], WRONG[2], WRONG[3], WRONG[7]], ids=str)
def test_finite_differences_fail_on(case: Case) -> None:
    with pytest.raises(AssertionError):
        prove_by_differences(case)


class HalfSquaredError(SquaredError):
    def backward(self, saved):
        return 0.5 * super().backward(saved)


def test_the_loss_harness_fails_on_a_half() -> None:
    case = LossCase(HalfSquaredError(), (4, 3), LOSS_CASES[0].target)
    with pytest.raises(AssertionError):
        prove_loss(case, "float64")
    with pytest.raises(AssertionError):
        prove_loss_by_differences(case)
