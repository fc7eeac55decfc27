"""The budget against what can be worked out by hand, and against published values."""

import math
import sys

import numpy as np
import pytest

from jaxbp import InputError
from jaxbp.beyond.privacy import epsilon, noise_for

pytest.importorskip("dp_accounting")


def phi(t: float) -> float:
    return 0.5 * math.erfc(-t / math.sqrt(2))


def solved(delta_of, delta: float) -> float:
    """The `ε` at which a decreasing `δ(ε)` is `delta`."""
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1.0, 1, 1e-5), (4.0, 9, 1e-6), (5.0, 100, 1e-5)])
def test_all_of_the_data_every_time_is_the_gaussian_mechanism(noise, steps, delta) -> None:
    """`δ(ε) = Φ(1/2s - εs) - e^ε Φ(-1/2s - εs)`, `s = σ/√steps`, exactly (Balle & Wang 2018)."""
    s = noise / math.sqrt(steps)
    exact = solved(lambda e: phi(0.5 / s - e * s) - math.exp(e) * phi(-0.5 / s - e * s), delta)
    found = epsilon(noise, 1.0, steps, delta)
    assert exact - 1e-6 <= found <= 1.005 * exact + 1e-3


@pytest.mark.parametrize(("noise", "rate"), [(0.8, 0.1), (1.5, 0.3)])
def test_one_poisson_step(noise, rate) -> None:
    """Where the example takes part, `(1-q) N(0, σ²) + q N(1, σ²)` stands against `N(0, σ²)`.

    The likelihood ratio `1 - q + q e^((2t-1)/2σ²)` rises with `t`, so the worst set is all above the `t`
    where it is `e^ε`. The other direction is smaller here.
    """

    def delta_of(e: float) -> float:
        t = 0.5 + noise**2 * math.log((math.exp(e) - 1 + rate) / rate)
        out, moved = phi(-t / noise), phi((1 - t) / noise)
        return (1 - rate) * out + rate * moved - math.exp(e) * out

    exact = solved(delta_of, 1e-5)
    found = epsilon(noise, rate, 1, 1e-5)
    assert exact - 1e-6 <= found <= 1.005 * exact + 2e-3


@pytest.mark.parametrize(
    ("noise", "batch", "epochs", "published"),
    [(1.3, 250, 15, 1.19), (1.1, 250, 60, 3.01), (0.7, 250, 45, 7.10)],
)
def test_the_published_runs_on_mnist(noise, batch, epochs, published) -> None:
    """TensorFlow Privacy's tutorial, by Rényi divergences of integer order, worked out here in float64.

        ε = min_α T R_α + log(1/δ)/(α - 1)
        R_α = log Σ_k C(α,k) (1-q)^(α-k) q^k e^(k(k-1)/2σ²) / (α-1)

    (Mironov et al. 2019). The account by distributions is tighter, and not by much.
    """
    q, steps = batch / 60_000, epochs * 60_000 // batch
    bounds = []
    for order in range(2, 65):
        k = np.arange(order + 1)
        choose = np.asarray([math.log(math.comb(order, int(j))) for j in k])
        terms = choose + (order - k) * math.log(1 - q) + k * math.log(q) + k * (k - 1) / (2 * noise**2)
        renyi = np.logaddexp.reduce(terms) / (order - 1)
        bounds.append(steps * renyi + math.log(1e5) / (order - 1))
    by_hand = min(bounds)
    assert abs(by_hand - published) < 0.03 * published
    assert 0.65 * by_hand < epsilon(noise, q, steps) < by_hand


def test_noise_for_a_budget_keeps_it_and_no_less_noise_does() -> None:
    noise = noise_for(2.0, 0.1, 50)
    assert 1.98 < epsilon(noise, 0.1, 50) <= 2.0
    assert epsilon(noise - 0.01, 0.1, 50) > 2.0


def test_the_ends() -> None:
    assert epsilon(1.0, 0.1, 0) == 0
    assert epsilon(0.0, 0.1, 3) == math.inf
    assert noise_for(1.0, 0.1, 0) == 0
    for given in ((-1.0, 0.1, 3), (1.0, 0.0, 3), (1.0, 1.5, 3), (1.0, 0.1, -1), (1.0, 0.1, 3, 0.0)):
        with pytest.raises(InputError):
            epsilon(*given)
    with pytest.raises(InputError, match="positive"):
        noise_for(0.0, 0.1, 3)


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"jaxbp\[private\]"):
        epsilon(1.0, 0.1, 3)
