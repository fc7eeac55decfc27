"""What private training costs: `ε` at `δ`, by the accountant of Google's `dp-accounting`.

A mechanism is `(ε, δ)`-private if, whichever one example joins or leaves the data, no set of outcomes
becomes likelier than `e^ε P + δ`. A step of `jaxbp.train.private` adds Gaussian noise of `σ` to a sum
that one example changes by at most 1 (both in units of `C`), and sees each example with probability `q`.
The account adds up the privacy losses of all steps as distributions, discretized from above: the `ε`
here is never too small, and some thousandths too large at most.
"""

from __future__ import annotations

from typing import Any

from jaxbp.layer import InputError, require_positive, require_share

INTERVAL = 1e-3  # of the discretized privacy losses; a tenth of it costs ten times as long for 0.4 %


def epsilon(noise: float, rate: float, steps: int, delta: float = 1e-5) -> float:
    """`ε` at `delta` after `steps` Poisson steps at sampling `rate`, of noise multiplier `noise`.

    `noise` is the standard deviation over the clipping norm. With `rate = 1` it is the account of `steps`
    looks at everybody: of epochs, where every example stands in one batch each and batches are fixed.
    Infinite without noise, 0 after no step. Source: Koskela et al. 2020; Doroshenko et al. 2022.
    """
    _require(rate, steps, delta)
    if not noise >= 0:
        raise InputError(f"epsilon: noise: expected a number >= 0, got {noise}")
    if steps == 0:
        return 0.0
    if noise == 0:
        return float("inf")
    account = _accountant()
    account.compose(_events(noise, rate, steps))
    return float(account.get_epsilon(delta))


def noise_for(epsilon: float, rate: float, steps: int, delta: float = 1e-5) -> float:
    """The smallest noise multiplier whose `steps` at `rate` stay within `epsilon` at `delta`."""
    _require(rate, steps, delta)
    require_positive(epsilon, "noise_for: epsilon")
    if steps == 0:
        return 0.0
    dp = _package()

    def events(noise: Any) -> Any:
        return _events(float(noise), rate, steps)

    return float(dp.calibrate_dp_mechanism(_accountant, events, epsilon, delta, tol=1e-4))


def _events(noise: float, rate: float, steps: int) -> Any:
    dp = _package()
    one = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    return dp.SelfComposedDpEvent(one, steps)


def _accountant() -> Any:
    _package()
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(value_discretization_interval=INTERVAL)


def _package() -> Any:
    try:
        import dp_accounting
    except ModuleNotFoundError:
        raise InputError(
            "a privacy budget needs the package dp-accounting: pip install 'jaxbp[private]'"
        ) from None
    return dp_accounting


def _require(rate: float, steps: int, delta: float) -> None:
    if not 0 < rate <= 1:
        raise InputError(f"rate: expected a number > 0 and <= 1, got {rate}")
    if steps < 0:
        raise InputError(f"steps: expected a number >= 0, got {steps}")
    require_share(delta, "delta")
    require_positive(delta, "delta")
