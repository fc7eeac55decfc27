"""How the examples of an epoch are shared out among its steps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxbp.layer import InputError, Layer, require_whole, smallest_batch

RARE = 1e-12


@dataclasses.dataclass(frozen=True)
class Batches:
    """`full` steps of `size` examples, and one of the `last` ones where some are left over.

    Those left over are left out of the epoch (`drop_last`), or make a last, smaller step; or, where they
    are fewer than the `least` that the network's statistics need (one row has no variance for a
    `BatchNorm`), they join the step before, which is then the larger last one. A `size` that is itself
    below `least` is taken as it is.

    `poisson` batches are drawn: every example joins each step with probability `rate = size / count`,
    whatever the others do, so that `size` is what a batch has on the average, and `widest` the number of
    rows that it is given. There are `count // size` steps, and nobody is left over.
    """

    count: int
    size: int
    drop_last: bool = False
    least: int = 1
    poisson: bool = False

    def __post_init__(self) -> None:
        require_whole("Batches", size=self.size)
        if self.size > self.count:
            raise InputError(f"batch_size: expected at most the {self.count} examples, got {self.size}")

    @classmethod
    def of(
        cls, net: Layer, count: int, size: int, drop_last: bool = False, poisson: bool = False
    ) -> Batches:
        """Those of a network's training."""
        return cls(count, size, drop_last, smallest_batch(net), poisson)

    @property
    def rate(self) -> float:
        """The probability with which an example joins a step."""
        return self.size / self.count

    @property
    def widest(self) -> int:
        """Rows of a Poisson batch: a draw that has more comes with a probability below `RARE`.

        By Chernoff, `P(K >= m) <= exp(-N KL(m/N ‖ q))` for `K ~ Binomial(N, q)`.
        """
        n, q = self.count, self.rate

        def log_tail(m: int) -> float:
            a = m / n
            rest = (1 - a) * math.log((1 - a) / (1 - q)) if m < n else 0.0
            return -n * (a * math.log(a / q) + rest)

        enough = (m for m in range(self.size, n) if m % 8 == 0 and log_tail(m + 1) < math.log(RARE))
        return next(enough, n)

    @property
    def joined(self) -> bool:
        """Whether the examples left over join the step before."""
        left = 0 if self.drop_last or self.poisson else self.count % self.size
        return 0 < left < self.least <= self.size

    @property
    def full(self) -> int:
        return self.count // self.size - self.joined

    @property
    def last(self) -> int:
        return 0 if self.drop_last or self.poisson else self.count - self.full * self.size

    @property
    def steps(self) -> int:
        return self.full + bool(self.last)

    @property
    def seen(self) -> int:
        """Examples in an epoch."""
        return self.full * self.size + self.last

    @property
    def shares(self) -> np.ndarray:
        """The share of the examples that each step sees: weights for averaging its losses."""
        sizes = [self.size] * self.full + [self.last] * bool(self.last)
        return np.asarray(sizes, np.float64) / self.seen

    def notes(self) -> tuple[str, ...]:
        """What whoever asked for such batches should know."""
        if self.poisson:
            return (
                f"an example joins a batch with probability {self.rate:.3g}: {self.size} on the average, "
                f"{self.widest} at most",
            )
        if self.drop_last and self.seen < self.count:
            return (f"{self.count - self.seen} of the examples are left out of every epoch (drop_last)",)
        if self.joined:
            few = self.count % self.size
            rows = "1 example that is left over joins" if few == 1 else f"{few} examples left over join"
            return (
                f"the {rows} the batch before, now of {self.last}: alone, too few for the network's "
                "statistics",
            )
        if self.size < self.least:
            return (
                f"batches of {self.size}: too few for the network's statistics, which need {self.least}",
            )
        return ()
