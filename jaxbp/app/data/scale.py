"""From the numbers in a file to those that a network sees, and back.

Networks compute in float32, files do not: the columns 1700000000 … 1700000099 are two numbers in float32.
So everything here is float64, and integers beyond 2⁵³, which that cannot hold either, stay integers until
something near them has been taken off; float32 is only what comes out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxbp.layer import InputError

WHOLE = 2**53  # integers up to here are float64 numbers
BLOCK = 2**22  # entries that are brought to float64 at once
NEAR = 2.0**-10  # a column that varies by a smaller share of its size may fall together in float32
LARGE = 30.0  # numbers beyond it are far from those that a network starts for
At = Callable[..., str]
"""From the row and the column of an entry to what an error calls its place."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """`x = ((v - origin) - shift) / divide`, entry by entry.

    `origin` is one of the values (or 0), so that `v - origin` is small and exact, integers of any size
    included; `shift` and `divide` are then computed from those differences.
    """

    shift: Any = 0.0
    divide: Any = 1.0
    origin: Any = 0.0

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Raw values `[n, …]` as float32."""
        x = np.empty(values.shape, np.float32)
        for part in blocks(values):
            # what float32 cannot hold becomes inf here, and is named by `within_float32`
            with np.errstate(over="ignore"):
                x[part] = (self.centred(values[part]) - self.shift) / self.divide
        return x

    def centred(self, values: np.ndarray) -> np.ndarray:
        """`v - origin` in float64."""
        values, origin = exact(values), self.origin
        if values.dtype == object:  # whole numbers stay whole on both sides of the minus
            origin = np.frompyfunc(lambda v: int(v) if float(v).is_integer() else v, 1, 1)(origin)
        with np.errstate(over="ignore"):
            return np.asarray(values - origin, np.float64)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """The raw values of `x`, in float64."""
        x = np.asarray(values, np.float64) * self.divide + self.shift
        return x + np.asarray(self.origin, np.float64)

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists, which keep every bit."""
        return {key: np.asarray(value).tolist() for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Scale:
        return cls(**{key: _from_list(raw[key]) for key in ("shift", "divide", "origin")})


def exact(values: np.ndarray) -> np.ndarray:
    """`values` as float64, or as Python integers and floats where float64 cannot hold some of them."""
    large = values.dtype.kind in "iu" and values.itemsize == 8 and values.size
    if large and (int(values.max()) > WHOLE or int(values.min()) < -WHOLE):
        return values.astype(object)
    return values if values.dtype == object else np.asarray(values, np.float64)


def _from_list(values: Any) -> np.ndarray:
    found = np.array(values, object)
    large = any(isinstance(v, int) and abs(v) > WHOLE for v in found.ravel())
    return found if large else found.astype(np.float64)


def blocks(values: np.ndarray) -> Iterator[slice]:
    """Rows of `values`, so many at a time that a float64 copy stays small."""
    rows = max(BLOCK // max(values[:1].size, 1), 1)
    return (slice(i, i + rows) for i in range(0, len(values), rows))


def standard_scale(values: np.ndarray) -> Scale:
    """Mean 0 and deviation 1 for each column of `[n, …]`; one that never changes is only shifted.

    Differences from the first row come first, which keeps what differs of large numbers, and is exactly 0
    where nothing does; and they are divided by the largest, so that no square over- or underflows.
    """
    first = Scale(origin=exact(values[:1])[0])
    d = first.centred(values)
    if not np.isfinite(d).all():
        raise InputError("standardize: expected values whose differences are float64 numbers")
    largest = np.abs(d).max(axis=0)
    unit = np.where(largest > 0, largest, 1.0)
    d /= unit
    deviation = d.std(axis=0) * unit
    return Scale(d.mean(axis=0) * unit, np.where(deviation > 0, deviation, 1.0), first.origin)


def within_float32(x: np.ndarray, raw: np.ndarray, what: str, at: At | None = None) -> np.ndarray:
    """`x`, scaled `raw`; an `InputError` that names the first entry that float32 cannot hold."""
    finite = np.isfinite(x)
    if not finite.all():
        first = np.unravel_index(np.argmin(finite), x.shape)
        raise InputError(
            f"{what}: expected numbers that float32 can hold, got {raw[first]} in {place(first, at)}; "
            "data.standardize or data.divide brings it into range"
        )
    return x


def far_from_one(x: np.ndarray, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A line where inputs are so large that weights made for numbers near 1 cannot take them."""
    if not x.size:
        return ()
    largest = np.maximum(x.max(axis=0), -x.min(axis=0))
    if largest.max() <= LARGE:
        return ()
    j = np.unravel_index(np.argmax(largest), largest.shape)
    where = f" in {column(int(j[0]), names)}" if x.ndim == 2 else ""
    return (
        f"inputs reach {largest.max():g}{where}: --data.standardize, or --data.divide by a number, "
        "brings them near 1, for which networks start",
    )


def fallen_together(x: np.ndarray, raw: np.ndarray, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A line for the columns of a table whose different values are mostly equal in float32."""
    if raw.ndim != 2 or not raw.size:
        return ()
    low, high = x.min(axis=0), x.max(axis=0)
    near = high - low < np.maximum(np.abs(low), np.abs(high)) * np.float32(NEAR)
    found = []
    for j in np.flatnonzero(near):
        kept, there = (len(np.unique(a[:, j])) for a in (x, raw))
        if 2 * kept < there:
            found.append(f"{column(int(j), names)} ({there} different values, {kept} in float32)")
    if not found:
        return ()
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (f"{', '.join(found[:3])}{more}: --data.standardize keeps them apart",)


def column(j: int, names: tuple[str, ...] = ()) -> str:
    """A column as an editor counts, with its name."""
    return f"column {j + 1} ({names[j]})" if names else f"column {j + 1}"


def place(index: tuple[Any, ...], at: At | None = None) -> str:
    """An entry of an array, counted from 0; of a table, as an editor counts."""
    if at is not None:
        return at(*map(int, index))
    columns = ", ".join(str(i) for i in index[1:])
    return f"row {index[0]}" + (f", column {columns}" if columns else "")
