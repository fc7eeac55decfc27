"""How the examples of an epoch are shared out among its steps."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxbp.layer import InputError, Layer, require_whole, smallest_batch


@dataclasses.dataclass(frozen=True)
class Batches:
    """`full` steps of `size` examples, and one of the `last` ones where some are left over.

    Those left over are left out of the epoch (`drop_last`), or make a last, smaller step; or, where they
    are fewer than the `least` that the network's statistics need (one row has no variance for a
    `BatchNorm`), they join the step before, which is then the larger last one. A `size` that is itself
    below `least` is taken as it is.
    """

    count: int
    size: int
    drop_last: bool = False
    least: int = 1

    def __post_init__(self) -> None:
        require_whole("Batches", size=self.size)
        if self.size > self.count:
            raise InputError(f"batch_size: expected at most the {self.count} examples, got {self.size}")

    @classmethod
    def of(cls, net: Layer, count: int, size: int, drop_last: bool = False) -> Batches:
        """Those of a network's training."""
        return cls(count, size, drop_last, smallest_batch(net))

    @property
    def joined(self) -> bool:
        """Whether the examples left over join the step before."""
        return not self.drop_last and 0 < self.count % self.size < self.least <= self.size

    @property
    def full(self) -> int:
        return self.count // self.size - self.joined

    @property
    def last(self) -> int:
        return 0 if self.drop_last else self.count - self.full * self.size

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
